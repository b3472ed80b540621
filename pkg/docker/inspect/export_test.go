package inspect

// Reaches is for the table of its test.
func Reaches(source, path string) bool { return reaches(source, path) }

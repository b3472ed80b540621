package launch

// Reaches is for the table of its test.
func Reaches(source, socket string) bool { return reaches(source, socket) }

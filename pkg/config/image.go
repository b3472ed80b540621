package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"tee-launcher/pkg/digest"
)

// Docker's grammar for the parts of a reference.
var (
	hostGrammar = regexp.MustCompile(`^(?:` + label + `(?:\.` + label + `)*|\[[a-fA-F0-9:]+\])(?::([0-9]+))?$`)
	pathGrammar = regexp.MustCompile(`^` + component + `(?:/` + component + `)*$`)
	tagGrammar  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	imageID     = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

const (
	label     = `[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?`
	component = `[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*`
	maxPath   = 255
)

// Image says where the image comes from. Which image it is, only a digest says.
type Image struct {
	Repository name.Repository
	Tag        string // a label for people; may be empty
}

// ParseImage reads [registry[:port]/]name[:tag] by Docker's grammar. All names of Docker Hub give the same Repository.
func ParseImage(s string) (Image, error) {
	if strings.Contains(s, "@") {
		// Not shown: what stands before an @ may be a password.
		return Image{}, errors.New("a reference must not hold a digest or a user; the approved list chooses the digest")
	}
	if imageID.MatchString(s) {
		return Image{}, fmt.Errorf("%q is the ID of an image, not its name", s)
	}
	if strings.Contains(s, "://") {
		return Image{}, fmt.Errorf("%.100q is a URL: write what stands behind ://", s)
	}
	path, host := s, "docker.io"
	if first, rest, found := strings.Cut(s, "/"); found && namesHost(first) {
		host, path = first, rest
	}
	registry, err := parseHost(host)
	if err != nil {
		return Image{}, err
	}
	path, tag, tagged := strings.Cut(path, ":")
	if lower := strings.ToLower(path); lower != path && pathGrammar.MatchString(lower) {
		return Image{}, fmt.Errorf("%.100q has capitals: the name of an image has none", s)
	}
	if !pathGrammar.MatchString(path) || tagged && !tagGrammar.MatchString(tag) {
		return Image{}, fmt.Errorf("%.100q is not [registry[:port]/]name[:tag]", s)
	}
	if registry.Name() == name.DefaultRegistry && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	if len(path) > maxPath {
		return Image{}, fmt.Errorf("the name in %.100q is longer than %d bytes", s, maxPath)
	}
	return Image{Repository: registry.Repo(path), Tag: tag}, nil
}

// namesHost is Docker's rule for telling a registry from the first part of a path.
func namesHost(first string) bool {
	return strings.ContainsAny(first, ".:") || first == "localhost" || first != strings.ToLower(first)
}

func parseHost(host string) (name.Registry, error) {
	match := hostGrammar.FindStringSubmatch(host)
	if match == nil {
		return name.Registry{}, fmt.Errorf("%.100q is not registry[:port]", host)
	}
	if port := match[1]; port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return name.Registry{}, fmt.Errorf("%.100q: a port is 1 to 65535", host)
		}
	}
	switch strings.ToLower(host) {
	case "docker.io", "index.docker.io", "registry.hub.docker.com":
		host = name.DefaultRegistry
	}
	registry, err := name.NewRegistry(host)
	if err != nil {
		return name.Registry{}, fmt.Errorf("%.100q is not registry[:port]", host)
	}
	return registry, nil
}

// parseRegistry reads a registry that stands alone. One that Docker would take for a part of the name is refused: joined
// to a name, it would be lost.
func parseRegistry(s string) (name.Registry, error) {
	if !namesHost(s) {
		return name.Registry{}, fmt.Errorf("%.100q has neither a dot nor a port, so Docker would read it as a part of the name", s)
	}
	return parseHost(s)
}

// parseImageIn reads a name that belongs to the registry and may already begin with it.
func parseImageIn(registry name.Registry, s string) (Image, error) {
	first, _, found := strings.Cut(s, "/")
	if !found || !namesHost(first) {
		return ParseImage(registry.Name() + "/" + s)
	}
	image, err := ParseImage(s)
	if err != nil {
		return Image{}, err
	}
	if image.Repository.Registry != registry {
		return Image{}, fmt.Errorf("%q is not in registry %q", image, registry)
	}
	return image, nil
}

// At returns the reference to the image with that digest.
func (i Image) At(digest digest.Digest) name.Digest { return i.Repository.Digest(digest.String()) }

// String returns the shortest form that means the same, which ParseImage reads back.
func (i Image) String() string {
	s := i.Repository.Name()
	if i.Repository.RegistryStr() == name.DefaultRegistry {
		s = "docker.io/" + i.Repository.RepositoryStr()
		for _, prefix := range []string{"docker.io/library/", "docker.io/"} {
			short, cut := strings.CutPrefix(s, prefix)
			if parsed, err := ParseImage(short); cut && err == nil && parsed.Repository == i.Repository {
				s = short
				break
			}
		}
	}
	if i.Tag != "" {
		s += ":" + i.Tag
	}
	return s
}

package launchtest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// RegistryOptions configures a Registry. The zero value is an open registry over plain http on a link without limits.
type RegistryOptions struct {
	// TLS makes it https, with a certificate of its own authority (CertPool) for 127.0.0.1, localhost and *.test.
	TLS bool
	// Expired makes the certificate one of the past.
	Expired bool
	// HTTP2Only is https that speaks nothing but HTTP/2.
	HTTP2Only bool
	// HTTP10 makes the answers those of an old server: HTTP/1.0, no ranges, one request for each connection.
	HTTP10 bool
	// NoRanges ignores Range, as the standard allows.
	NoRanges bool

	// Auth is how a client has to log in.
	Auth RegistryAuth
	// Username, Password and IdentityToken are accepted, each where it isn't empty.
	Username, Password, IdentityToken string
	// Public gives tokens to clients without credentials too, as Docker Hub does.
	Public bool
	// TokenLife is how long a token lasts; 5 min if zero. It is told to the client in whole seconds, a minute at least.
	TokenLife time.Duration
	// Realm is the token server that challenges name. Empty: this registry's own.
	Realm string

	// Redirect answers requests for blobs with a redirect to a storage host of its own, which accepts each URL until
	// Expire and sends away whoever brings credentials.
	Redirect RegistryRedirect

	// Network is where the registry listens; nil: this machine's loopback.
	Network *Network
	// Rate bounds what a connection carries, in bytes per second; 0: nothing does.
	Rate int64
	// TotalRate bounds what all connections carry together, in bytes per second; 0: nothing does.
	TotalRate int64
	// RoundTrip is the time until a request has arrived.
	RoundTrip time.Duration
}

// RegistryAuth is a way to log in.
type RegistryAuth string

// The ways to log in.
const (
	RegistryOpen   RegistryAuth = ""       // without
	RegistryBasic  RegistryAuth = "basic"  // user and password with each request
	RegistryBearer RegistryAuth = "bearer" // a token from a token server, got with user and password or an identity token
)

// RegistryRedirect is where blobs are.
type RegistryRedirect string

// The places where blobs are.
const (
	RedirectNone RegistryRedirect = ""
	RedirectHost RegistryRedirect = "host" // another host, https as the registry or not
	RedirectHTTP RegistryRedirect = "http" // another host over plain http, whatever the registry speaks
)

// Registry is a double of a registry on 127.0.0.1, with ranges, log-in, redirects, a slow link, and faults and lies to
// switch on.
type Registry struct {
	o         RegistryOptions
	address   string
	storage   string // address of the storage host, empty without redirects
	total     *link  // that of all connections, both hosts'
	authority *authority

	mu         sync.Mutex
	blobs      map[string][]byte // by digest, of all repositories
	manifests  map[string][]byte // by their path
	servers    []*http.Server    // nil while the registry is down
	down       chan struct{}     // closed when it goes down
	faults     []*RegistryFault
	hits       map[RegistryFaultKind]int
	forged     map[string]forgery
	tokens     map[string]time.Time // the end of each
	issued     int
	epoch      int // of the storage's URLs
	requests   []RegistryRequest
	unexpected []string
	sent       int64
}

// RegistryRequest is one request as the registry, its token server or its storage host saw it.
type RegistryRequest struct {
	Kind       RequestKind
	Method     string
	Path       string
	Query      string
	Range      string
	TLS        bool
	Proto      string
	Credential string // the scheme of an Authorization header: "Basic", "Bearer"; "identity token" in a form
	Remote     string // the client's address, so the connection
}

// RequestKind is what a request is for.
type RequestKind string

// The kinds of requests.
const (
	RequestPing     RequestKind = "ping"
	RequestManifest RequestKind = "manifest"
	RequestBlob     RequestKind = "blob"
	RequestToken    RequestKind = "token"
	RequestStorage  RequestKind = "storage" // a blob at the storage host
)

type forgery struct {
	contentType string
	body        []byte
}

// NewRegistry starts a registry.
func NewRegistry(o RegistryOptions) (*Registry, error) {
	r := &Registry{o: o, address: "127.0.0.1:0", total: &link{rate: o.TotalRate}, blobs: map[string][]byte{}, manifests: map[string][]byte{},
		hits: map[RegistryFaultKind]int{}, forged: map[string]forgery{}, tokens: map[string]time.Time{}}
	r.o.TLS = o.TLS || o.HTTP2Only
	if r.o.TokenLife == 0 {
		r.o.TokenLife = 5 * time.Minute
	}
	if o.Redirect != RedirectNone {
		r.storage = "127.0.0.1:0"
	}
	if r.o.TLS {
		r.authority = newAuthority(o.Expired)
	}
	return r, r.Start()
}

// Start brings a stopped registry up again, at the same address.
func (r *Registry) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.servers != nil {
		return errors.New("registry is up")
	}
	main, err := r.listen(r.address)
	if err != nil {
		return err
	}
	r.address = main.Addr().String()
	r.down = make(chan struct{})
	r.serve(main, r.o.TLS, http.HandlerFunc(r.front))
	if r.storage == "" {
		return nil
	}
	storage, err := r.listen(r.storage)
	if err != nil {
		return err
	}
	r.storage = storage.Addr().String()
	r.serve(storage, r.o.TLS && r.o.Redirect != RedirectHTTP, http.HandlerFunc(r.serveStorage))
	return nil
}

func (r *Registry) listen(address string) (net.Listener, error) {
	if r.o.Network != nil {
		return r.o.Network.Listen(address)
	}
	return net.Listen("tcp", address)
}

func (r *Registry) serve(listener net.Listener, secure bool, handler http.Handler) {
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(!r.o.HTTP2Only || !secure)
	server.Protocols.SetHTTP2(r.o.HTTP2Only)
	listener = &slowListener{Listener: listener, rate: r.o.Rate, total: r.total, roundTrip: r.o.RoundTrip}
	r.servers = append(r.servers, server)
	if !secure {
		go server.Serve(listener)
		return
	}
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{r.authority.leaf}, MinVersion: tls.VersionTLS12}
	go server.ServeTLS(listener, "", "")
}

// Stop takes the registry off the network: its connections break, further ones are refused.
func (r *Registry) Stop() error {
	r.mu.Lock()
	servers := r.servers
	r.servers = nil
	if servers != nil {
		close(r.down)
	}
	r.mu.Unlock()
	var err error
	for _, s := range servers {
		err = errors.Join(err, s.Close())
	}
	return err
}

// Close ends the registry.
func (r *Registry) Close() error { return r.Stop() }

// Network returns the network that the registry is on, nil for this machine's.
func (r *Registry) Network() *Network { return r.o.Network }

// Host returns the registry's host and port.
func (r *Registry) Host() string { return r.address }

// StorageHost returns that of the host that redirects lead to, empty without redirects.
func (r *Registry) StorageHost() string { return r.storage }

// CertPool returns the authority that signed the certificate, nil without TLS.
func (r *Registry) CertPool() *x509.CertPool {
	if r.authority == nil {
		return nil
	}
	return r.authority.pool
}

// CertPEM returns the authority's certificate as SSL_CERT_FILE takes it, nil without TLS.
func (r *Registry) CertPEM() []byte {
	if r.authority == nil {
		return nil
	}
	return bytes.Clone(r.authority.pem)
}

// Push stores an image under its digest and tags and returns the reference by digest.
func (r *Registry) Push(repository string, img v1.Image, tags ...string) (name.Digest, error) {
	for _, data := range imageBlobs(img) {
		if _, err := r.PushBlob(repository, data); err != nil {
			return name.Digest{}, err
		}
	}
	return r.PushManifest(repository, must(img.RawManifest()), tags...)
}

// PushIndex stores an index and all images in it.
func (r *Registry) PushIndex(repository string, index v1.ImageIndex, tags ...string) (name.Digest, error) {
	for _, entry := range must(index.IndexManifest()).Manifests {
		if _, err := r.Push(repository, must(index.Image(entry.Digest))); err != nil {
			return name.Digest{}, err
		}
	}
	return r.PushManifest(repository, must(index.RawManifest()), tags...)
}

// PushManifest stores any bytes as a manifest, under their digest and the tags.
func (r *Registry) PushManifest(repository string, data []byte, tags ...string) (name.Digest, error) {
	hash := digestOf(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, target := range append(tags, hash) {
		r.manifests["/v2/"+repository+"/manifests/"+target] = data
	}
	return name.NewDigest(r.address + "/" + repository + "@" + hash)
}

// PushBlob stores any bytes as a blob, which all repositories have then. They must not change afterwards.
func (r *Registry) PushBlob(_ string, data []byte) (v1.Hash, error) {
	hash := hashOf(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[hash.String()] = data
	return hash, nil
}

// imageBlobs returns the layers of an image, the lowest first, and its config, as they are in a registry.
func imageBlobs(img v1.Image) [][]byte {
	var blobs [][]byte
	for _, l := range must(img.Layers()) {
		data := make([]byte, must(l.Size()))
		r := must(l.Compressed())
		must(io.ReadFull(r, data))
		must(0, r.Close())
		blobs = append(blobs, data)
	}
	return append(blobs, must(img.RawConfigFile()))
}

// Forge makes the registry answer a request for the manifest or blob h with something else, under h's name: with
// Docker-Content-Digest saying h, and with any content type.
func (r *Registry) Forge(h v1.Hash, contentType string, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forged[h.String()] = forgery{contentType, bytes.Clone(body)}
}

// Expire makes the URLs that redirects led to, and the tokens that were given out, worthless.
func (r *Registry) Expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	clear(r.tokens)
}

// Requests returns all requests so far, in order, those that the faults hit included.
func (r *Registry) Requests() []RegistryRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Count returns how many requests of a kind there were.
func (r *Registry) Count(kind RequestKind) int {
	n := 0
	for _, q := range r.Requests() {
		if q.Kind == kind {
			n++
		}
	}
	return n
}

// BlobBytes returns how many bytes of blobs were sent, configs included.
func (r *Registry) BlobBytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

// Unexpected returns the requests that no client of a registry makes when it pulls, with the reason.
func (r *Registry) Unexpected() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.unexpected)
}

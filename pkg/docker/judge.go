package docker

import (
	"bufio"
	"context"
	"errors"
	"io"

	"tee-launcher/pkg/image"
)

// judge unpacks layers beside the load that sends them, to see whether an engine that refuses them
// is right: it has only its own words for a layer that isn't the tar that the config says. What the
// judge finds counts for nothing where the engine takes the image: there are layers that programs
// read in different ways, and the engine's way decides.
type judge struct {
	layers chan *io.PipeReader // what is sent of each
	done   chan struct{}
	// Once done is closed:
	lie   *image.Error // what is wrong with the first one that isn't right
	flaws []flaw       // of those before it
}

// newJudge returns a judge for the layers of v with these indices, in this order. Its verdict has
// to be asked for.
func newJudge(v *image.Verified, layers []int) *judge {
	j := &judge{layers: make(chan *io.PipeReader, len(layers)), done: make(chan struct{})}
	go func() {
		defer close(j.done)
		heard := &overheard{layers: j.layers}
		errors.As(j.unpack(v, v.Open(context.Background(), heard, layers), heard, layers), &j.lie)
		for err := error(nil); err == nil; { // whoever sends is held up no longer
			_, err = heard.Next()
		}
	}()
	return j
}

// unpack reads the layers of a stream to its end or to the first error.
func (j *judge) unpack(v *image.Verified, stream *image.Stream, heard *overheard, layers []int) error {
	for _, i := range layers {
		r, err := stream.NextPlain()
		if err == nil {
			found := append(misnamed(v, i, heard.magic), flaws(r, v.LayerPart(i), maxFlaws-len(j.flaws))...)
			_, err = io.Copy(io.Discard, r)
			r.Close() // says nothing that isn't in err
			if err == nil {
				j.flaws = append(j.flaws, found...)
			}
		}
		if err != nil {
			return closeAfter(err, stream)
		}
	}
	return stream.Close()
}

// errNotSent ends a layer of which not all was sent. It is no judgement on the layer.
var errNotSent = errors.New("the layer was not sent to its end")

// listen returns r, the next layer, so that the judge hears what is read of it. The function that
// comes with it has to be called at the end, and says whether all of the layer was read.
func (j *judge) listen(r io.Reader) (io.Reader, func(all bool)) {
	heard, w := io.Pipe()
	j.layers <- heard
	return io.TeeReader(r, unheeded{w}), func(all bool) {
		if all {
			w.Close()
		} else {
			w.CloseWithError(errNotSent)
		}
	}
}

// verdict returns what is wrong with the layers, or nil, and their flaws. No layer comes after it.
func (j *judge) verdict() (*image.Error, []flaw) {
	close(j.layers)
	<-j.done
	return j.lie, j.flaws
}

// unheeded is a writer whose failures don't matter.
type unheeded struct{ io.Writer }

func (w unheeded) Write(p []byte) (int, error) {
	_, _ = w.Writer.Write(p)
	return len(p), nil
}

// overheard is a source of layers that are on their way to the engine.
type overheard struct {
	layers  <-chan *io.PipeReader
	current *io.PipeReader
	magic   []byte // that the current layer begins with
}

func (o *overheard) Open(context.Context, *image.Verified, []int) image.Blobs { return o }

func (o *overheard) Next() (io.Reader, error) {
	if o.current != nil {
		o.current.Close()
	}
	var ok bool
	if o.current, ok = <-o.layers; !ok {
		return nil, errNotSent
	}
	r := bufio.NewReader(o.current)
	o.magic, _ = r.Peek(4) // what can't be read shows later
	return r, nil
}

func (o *overheard) Arrived() int64          { return 0 }
func (o *overheard) Damaged() (string, bool) { return "", false }
func (o *overheard) Close() error            { return nil }

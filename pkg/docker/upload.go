package docker

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tee-launcher/pkg/docker/internal/api"
)

const (
	opLoad = "loading the image"
	// maxLoadAnswer bounds all that the engine says during a load, which is mostly progress, and
	// maxLoadLine each thing that it says: that is read whole.
	maxLoadAnswer = 64 << 20
	maxLoadLine   = 1 << 20
	// stallLimit is how long an engine may take neither bytes nor say anything while it is its turn.
	stallLimit = 5 * time.Minute
	// slowUnpacking is how many bytes a second of an archive the slowest engine unpacks that is waited for.
	slowUnpacking = 4 << 20
)

var (
	errEngineLeft = errors.New("the engine ended the upload")
	errStalled    = errors.New("the engine has stopped reading and answering")
)

// upload is one archive on its way into the engine.
type upload struct {
	// write makes the archive. A failing write breaks the upload off: one that is ended cleanly is loaded even if we are gone.
	write func(*tar.Writer) error
	// refused is called with the engine's refusal while write may still wait for bytes that aren't needed any more; it must make write end.
	refused func(error)
	// unpacked is told how far the engine is with which layer, where it says so.
	unpacked func(id string, current int64)
}

// send sends the archive as it is made, and judges the engine's answer. An archive that was sent to its end is waited for until ctx ends,
// whatever else goes wrong: the engine loads it in any case, and only then can it be cleaned up.
func (e *Engine) send(ctx context.Context, u upload) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := e.afterFunc(stallLimit, func() { cancel(errStalled) })
	stalled.Stop()
	defer stalled.Stop()

	body, sink := io.Pipe()
	written := make(chan error, 1)
	watch := &timed{Writer: sink, timer: stalled, limit: stallLimit}
	go func() {
		t := tar.NewWriter(watch)
		err := u.write(t)
		if err == nil {
			err = t.Close()
		}
		if err == nil {
			// From here on it is the engine's turn, and it may have nothing to say until all is unpacked.
			watch.limit = stallLimit + time.Duration(watch.bytes/slowUnpacking)*time.Second
			stalled.Reset(watch.limit)
		}
		written <- err // before the client can fail for it: it is the cause then
		sink.CloseWithError(err)
	}()
	// Not for a platform: from 29.1 on an index is refused then whose attestations aren't sent, too.
	answer, err := e.client.Stream(ctx, api.Request{
		Op: opLoad, Method: http.MethodPost, Path: "/images/load", Query: url.Values{"quiet": {"0"}},
	}, body, "application/x-tar")
	if err == nil {
		err = readAnswer(answer, func() { stalled.Reset(stallLimit) }, u.unpacked)
		answer.Close()
	}
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		err = &Error{Op: opLoad, Err: errStalled}
	}
	var source error
	select {
	case source = <-written:
	default:
		// The engine has answered before it had all.
		if err == nil {
			err = &Error{Op: opLoad, Err: errEngineLeft}
		}
		body.CloseWithError(errEngineLeft)
		u.refused(err)
		<-written
		return err
	}
	if source == nil || errors.Is(source, io.ErrClosedPipe) {
		if err == nil && source != nil {
			err = &Error{Op: opLoad, Err: errEngineLeft}
		}
		return err
	}
	return source // the upload was broken off on our side; what the engine says of that is a consequence
}

// timed writes under a watch that is stopped in between, while it waits for the source.
type timed struct {
	io.Writer
	timer Timer
	limit time.Duration
	bytes int64
}

func (w *timed) Write(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	defer w.timer.Stop()
	n, err := w.Writer.Write(p)
	w.bytes += int64(n)
	return n, err
}

// readAnswer reads the engine's JSON lines. Every load answers HTTP 200; that it went wrong stands in a line only, and
// the newest engines say even that in a line that looks like any other. Unpacked is told how far the engine is with which layer, where it
// says so; alive is called for every line.
func readAnswer(r io.Reader, alive func(), unpacked func(id string, current int64)) error {
	limited := &io.LimitedReader{R: r}
	lines := json.NewDecoder(limited)
	for left := int64(maxLoadAnswer); ; {
		var line struct {
			ID             string
			Status         string
			ProgressDetail struct{ Current int64 }
			Stream         string
			Error          string
			ErrorDetail    struct{ Message string }
		}
		limited.N = min(left, maxLoadLine)
		left -= limited.N
		err := lines.Decode(&line)
		left += limited.N // what is read ahead counts for the next line
		switch {
		case errors.Is(err, io.EOF) && limited.N > 0:
			return nil
		case limited.N <= 0:
			return &Error{Op: opLoad, Err: fmt.Errorf("answer of more than %d bytes, or %d in one line",
				maxLoadAnswer, maxLoadLine)}
		case err != nil:
			return &Error{Op: opLoad, Err: fmt.Errorf("answer: %w", err)}
		case line.ErrorDetail.Message != "":
			return &Error{Op: opLoad, Status: http.StatusOK, Message: api.Trim(line.ErrorDetail.Message)}
		case line.Error != "":
			return &Error{Op: opLoad, Status: http.StatusOK, Message: api.Trim(line.Error)}
		case strings.HasPrefix(line.Stream, "Error unpacking image"):
			return &Error{Op: opLoad, Status: http.StatusOK, Message: api.Trim(line.Stream)}
		}
		alive()
		if line.Status == "Loading layer" {
			unpacked(line.ID, line.ProgressDetail.Current)
		}
	}
}

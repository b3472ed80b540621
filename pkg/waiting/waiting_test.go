package waiting_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"tee-launcher/pkg/waiting"
)

func TestTheLongestWaitIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var board waiting.Board
		ctx := waiting.With(t.Context(), &board)
		what, _ := board.Longest()
		assert.Empty(t, what)

		began := time.Now()
		engine := waiting.For(ctx, "the engine")
		time.Sleep(time.Second)
		agent := waiting.For(ctx, "the agent")
		what, since := board.Longest()
		assert.Equal(t, "the engine", what)
		assert.Equal(t, began, since)

		engine()
		engine() // as a deferred call may
		what, since = board.Longest()
		assert.Equal(t, "the agent", what)
		assert.Equal(t, began.Add(time.Second), since)
		agent()
		what, _ = board.Longest()
		assert.Empty(t, what)
	})
}

func TestWithoutABoardNothingHappens(t *testing.T) {
	t.Parallel()
	waiting.For(context.Background(), "the engine")()
}

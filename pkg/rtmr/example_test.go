package rtmr_test

import (
	"fmt"
	"os"

	"tee-launcher/pkg/digest"
	"tee-launcher/pkg/rtmr"
)

// A verifier has a log from somebody that it doesn't trust. What it believes is the register: the
// log must replay to it, and then says what was measured.
func ExampleLog_Accepted() {
	document, err := os.ReadFile("../../testdata/rtmr/tcb_info-dstack-0.5.8-dev.json")
	if err != nil {
		fmt.Println(err)
		return
	}
	log, err := rtmr.Parse(document)
	if err != nil {
		fmt.Println(err)
		return
	}
	reported, _ := log.Reported()
	fmt.Println("replays:", log.Replay() == reported)
	image, err := log.Accepted()
	fmt.Println(image, err)
	// Output:
	// replays: true
	// sha256:564a5aebc33495d5610626d23cb9e3da8e9d531d0edff9e38aa1ccaf059c15d3 <nil>
}

// What measuring an image extends the register with, and what an empty one becomes by it.
func ExampleExtend() {
	image, err := digest.Parse("sha256:" +
		"564a5aebc33495d5610626d23cb9e3da8e9d531d0edff9e38aa1ccaf059c15d3")
	if err != nil {
		fmt.Println(err)
		return
	}
	event := rtmr.DigestV1(rtmr.EventName, image[:])
	fmt.Println(event)
	fmt.Println(rtmr.Extend(rtmr.Register{}, event))
	// Output:
	// 0405a5706797115cdcccb66841205179fa5c2d989ad42fee2e2fab4c5b52bb6d9aa9bf8a86755d37e8566fdaabebc468
	// 4ec38fb1adacd6f84a4c7e23f07ea8657187502e7b38f517849a0ebce229de8209f03682fe6d371b3508ef7b2d0695da
}

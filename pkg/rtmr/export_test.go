package rtmr

import "tee-launcher/pkg/digest"

// JudgeRuntimeLog judges dstack's log beside a register.
func JudgeRuntimeLog(
	register Register, data []byte, images []digest.Digest,
) (log Log, rest []byte, err error) {
	s, err := parseLog(register, data)
	if err != nil {
		return Log{}, nil, err
	}
	return s.judge(images)
}

// RuntimeEvents returns the events of whole lines.
func RuntimeEvents(data []byte) ([]Event, error) {
	s, err := parseLog(Register{}, data)
	return s.events, err
}

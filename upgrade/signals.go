package upgrade

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigset is the signals as the kernel has them.
func sigset(signals []syscall.Signal) (set unix.Sigset_t) {
	const bits = 8 * int(unsafe.Sizeof(set.Val[0]))
	for _, sig := range signals {
		n := int(sig) - 1
		set.Val[n/bits] |= 1 << (n % bits)
	}
	return set
}

// signalsVariable is signals as a variable of the environment. They cannot go along as pending ones: the
// threads that do not call execve(2) take them (docs/decisions.md).
func signalsVariable(signals []syscall.Signal) string {
	numbers := make([]string, len(signals))
	for i, sig := range signals {
		numbers[i] = strconv.Itoa(int(sig))
	}
	return envSignals + "=" + strings.Join(numbers, " ")
}

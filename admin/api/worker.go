package api

import "time"

// LogQuery chooses lines of workers. Slot -1 is every slot, Last 0 all that lb remembers.
type LogQuery struct {
	Slot   int
	Last   int
	Follow bool // and those to come
}

// WorkerLine is a line that a worker wrote to its standard output or error, without the line break.
type WorkerLine struct {
	Time time.Time `json:"time"`
	Slot int       `json:"slot"`
	PID  int       `json:"pid"`
	Text string    `json:"text"`
	// Cut says that it was longer.
	Cut bool `json:"cut,omitempty"`
	// Dropped is how many lines of the pool before this one are not shown, because this caller reads too
	// slowly.
	Dropped uint64 `json:"dropped,omitempty"`
}

// WorkersStatus is the workers of one pool at one moment.
type WorkersStatus struct {
	// Count is how many there shall be.
	Count int `json:"count"`
	// Restarting says that a restart is under way: Done of Total are replaced.
	Restarting bool `json:"restarting"`
	Done       int  `json:"done"`
	Total      int  `json:"total"`
	// Stale says that some run another command, environment or directory than the config has.
	Stale bool `json:"stale"`
	// Strays is how many are of something else than what last worked for all, as a restart failed half-way; a
	// rollback takes them back.
	Strays int `json:"strays,omitempty"`
	// CanRollback says that there is something to roll back to.
	CanRollback bool `json:"can_rollback"`
	// RecordError is why an lb that is started after this one was killed would not find all of them; empty:
	// it would.
	RecordError string `json:"record_error,omitempty"`
	// Slots are the places for workers, in order; Retired are replaced workers that have not ended.
	Slots   []SlotStatus   `json:"slots"`
	Retired []WorkerStatus `json:"retired"`
	// OutputLines counts the lines that they wrote, OutputDropped those of them that could not be written to
	// their file, which a line in their place says.
	OutputLines   uint64 `json:"output_lines"`
	OutputDropped uint64 `json:"output_dropped"`
	// Notifications counts the messages on their notify socket, by what became of them: "taken", or refused
	// as "unknown_sender", "garbage" or "too_long".
	Notifications map[string]uint64 `json:"notifications"`
}

// SlotStatus is one place for a worker, and the worker in it.
type SlotStatus struct {
	WorkerStatus
	// Restarts is how many workers this lb has started in the slot after the first.
	Restarts uint64 `json:"restarts"`
	// Exits counts the workers of the slot that ended, by reason: "crashed", "not_started", "not_ready",
	// "hung", "broken", or "stopped" by lb.
	Exits map[string]uint64 `json:"exits,omitempty"`
	// CPUSeconds is the CPU time of the slot's workers so far, and of what they have started.
	CPUSeconds float64 `json:"cpu_seconds"`
	// QuickDeaths is how many died soon after their start, in a row.
	QuickDeaths int `json:"quick_deaths"`
	// Next is the worker that is to replace this one.
	Next *WorkerStatus `json:"next,omitempty"`
	// LastExit is how the slot's last worker ended.
	LastExit *WorkerExit `json:"last_exit,omitempty"`
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Slot int `json:"slot"`
	// State is as docs/workers-states.md has it, "failed" (it died five times in a row, and waits), or
	// "stopped".
	State string `json:"state"`
	// Since is when it came into State, Reason why.
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// PID is 0 for one without a process.
	PID int `json:"pid"`
	// Started is when its process started, Up when it was first ready, Due when one that waits will be
	// started.
	Started *time.Time `json:"started,omitempty"`
	Up      *time.Time `json:"up,omitempty"`
	Due     *time.Time `json:"due,omitempty"`
	// Usage is what it takes of the host; null where it is not known.
	Usage *WorkerUsage `json:"usage,omitempty"`
	// Text is what it says of itself, STATUS= of sd_notify.
	Text string `json:"text,omitempty"`
	// Backend is the name of the backend that it is; empty for none.
	Backend string   `json:"backend,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Command []string `json:"command,omitempty"`
}

// WorkerUsage is what a worker and the processes that it has started take of the host.
type WorkerUsage struct {
	// CPU is how many CPUs they used over the last seconds: 0.5 is half of one.
	CPU float64 `json:"cpu"`
	// CPUSeconds is their CPU time so far, user and system.
	CPUSeconds float64 `json:"cpu_seconds"`
	// Memory is their bytes in RAM; a page that they share counts once for each.
	Memory uint64 `json:"memory_bytes"`
	// Processes is how many they are.
	Processes int `json:"processes"`
}

// WorkerExit is how a worker ended.
type WorkerExit struct {
	Time   time.Time `json:"time"`
	PID    int       `json:"pid"`
	Reason string    `json:"reason"`
	// Fault is the first line of the crash that it wrote of, such as Go's "panic: …" or the last line of a
	// Python traceback; empty if none was seen.
	Fault string `json:"fault,omitempty"`
	// Lines are the last ones that it wrote.
	Lines []string `json:"lines"`
}

// ScaleRequest is the body of POST …/scale: one of the two.
type ScaleRequest struct {
	Count *int `json:"count,omitempty"`
	Delta *int `json:"delta,omitempty"`
}

package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxRecord is the longest record that is read, in bytes.
const maxRecord = 16 << 20

// faultRecord: the record cannot be written.
const faultRecord = "record"

// recordName is the record's, a file beside the pool's directory, where the workers' user cannot write.
func (p *Pool) recordName() string { return p.Name + ".json" }

// saveRecord writes the record, if it has changed.
func (p *Pool) saveRecord() {
	text, err := json.Marshal(p.record())
	if err != nil {
		panic("BUG: supervisor: a record that is no JSON: " + err.Error())
	}
	if string(text) == p.recorded {
		return
	}
	err = p.host.record(string(text))
	if p.recorded = string(text); err != nil {
		p.recorded = "" // tried again with the next event, or look
	}
	p.setFault(faultRecord, err)
}

// writeRecord puts the record in the place of the one before. It need not survive the host, only lb.
func (p *Pool) writeRecord(text string) error {
	dir, name := p.dir.entries(), p.recordName()
	err := dir.WriteFile(name+".new", []byte(text), 0o600)
	if err == nil {
		err = dir.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("cannot record the workers: %w", err)
	}
	return nil
}

// readRecord reads what an lb before has left; nil if there is nothing of use.
func (p *Pool) readRecord() *snapshot {
	f, err := p.dir.entries().Open(p.recordName())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, maxRecord))
		f.Close()
	}
	var rec *snapshot
	if err == nil {
		rec, err = parseSnapshot(text, p.Name, oldestRecord)
	}
	if err != nil {
		if p.Hooks.Fault != nil {
			p.Hooks.Fault("record of the lb before", fmt.Errorf("cannot find workers that an lb before has left: %w", err))
		}
		return nil
	}
	if rec.Boot != "" && p.boot != "" && rec.Boot != p.boot { // unknown: the start times tell
		return nil
	}
	return rec
}

// bootID tells one boot of the host from another; "" where /proc has no more than processes (subset=pid of
// proc(5)).
func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

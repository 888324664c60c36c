package bench

import (
	"os"
	"testing"
)

func ExampleTable() {
	t := Table{Header: []string{"contender", "CPU µs", "of best"}}
	t.Add("lb", "9.5", "0.85")
	t.AddNoted("INVALID", "haproxy", "11.25")
	t.Write(os.Stdout)
	// Output:
	//   contender  CPU µs  of best
	//   lb            9.5     0.85
	//   haproxy     11.25           INVALID
}

func TestTable_TooManyCells(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("got no panic for a row wider than the header")
		}
	}()
	table := Table{Header: []string{"one"}}
	table.Add("1", "2")
}

package plot

import (
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// element is what the tests read of an SVG.
type element struct {
	XMLName  xml.Name
	Class    string    `xml:"class,attr"`
	Width    float64   `xml:"width,attr"`
	X        float64   `xml:"x,attr"`
	Y        float64   `xml:"y,attr"`
	CX       float64   `xml:"cx,attr"`
	CY       float64   `xml:"cy,attr"`
	Text     string    `xml:",chardata"`
	Title    string    `xml:"title"`
	Children []element `xml:",any"`
}

// mark returns the text at an axis.
func mark(t *testing.T, all []element, class, text string) element {
	t.Helper()
	i := slices.IndexFunc(all, func(e element) bool { return e.Class == class && e.Text == text })
	if i < 0 {
		t.Fatalf("the mark %q is missing", text)
	}
	return all[i]
}

// draw returns the elements of an SVG. It draws it several times and fails if the text differs.
func draw(t *testing.T, svg func() string) []element {
	t.Helper()
	first := svg()
	for range 20 {
		if svg() != first {
			t.Fatal("equal plots give different text")
		}
	}
	var root element
	if err := xml.Unmarshal([]byte(first), &root); err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	return root.Children
}

// titled returns the element whose title this is.
func titled(t *testing.T, all []element, title string) element {
	t.Helper()
	i := slices.IndexFunc(all, func(e element) bool { return e.Title == title })
	if i < 0 {
		t.Fatalf("nothing is titled %q", title)
	}
	return all[i]
}

func hasText(t *testing.T, all []element, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if !slices.ContainsFunc(all, func(e element) bool { return e.Text == s }) {
			t.Errorf("the text %q is missing", s)
		}
	}
}

var lines = Lines{
	Title: "Rate & more", Note: "a note", X: "how many", Y: "rate <1000/s>", At: []int{0, 100, 1000, 10000},
	Lines: []Line{{"a", []float64{23, 22, 21, 20}}, {"b", []float64{23, 20, 15, 10}}, {"c", []float64{23, 20, 14, 9.9}}},
}

func TestLines(t *testing.T) {
	t.Parallel()
	all := draw(t, lines.SVG)
	hasText(t, all, "Rate & more", "a note", "how many", "rate <1000/s>", "0", "100", "1,000", "10,000", "a 20.0", "b 10.0", "c 9.9")
	origin := titled(t, all, "a, 0: 23.0")
	scale := (titled(t, all, "a, 10,000: 20.0").CY - origin.CY) / 3
	decade := titled(t, all, "a, 100: 22.0").CX - origin.CX
	if twenty := mark(t, all, "muted end", "20"); twenty.Y-4 != titled(t, all, "a, 10,000: 20.0").CY {
		t.Errorf("the mark of 20 is at %g", twenty.Y)
	}
	for i, l := range lines.Lines {
		for j, v := range l.Values {
			dot := titled(t, all, fmt.Sprintf("%s, %s: %.1f", l.Name, thousands(lines.At[j]), v))
			if dot.Class != fmt.Sprintf("area%d", i+1) {
				t.Errorf("%s is drawn as %s", dot.Title, dot.Class)
			}
			if x, y := origin.CX+float64(j)*decade, origin.CY+(23-v)*scale; math.Abs(dot.CX-x) > 0.2 || math.Abs(dot.CY-y) > 0.2 {
				t.Errorf("%s stands at %g, %g, not at %.1f, %.1f", dot.Title, dot.CX, dot.CY, x, y)
			}
		}
		if class := fmt.Sprintf("line line%d", i+1); !slices.ContainsFunc(all, func(e element) bool { return e.Class == class }) {
			t.Errorf("%s has no line", l.Name)
		}
	}
}

func TestStack(t *testing.T) {
	t.Parallel()
	p := Stack{
		Title: "Time", Note: "a note", X: "ms", Parts: []Part{{"floor", "the least"}, {"work", "what it does"}, {"rest", "what is left"}},
		Bars: []Bar{{"one", []float64{2, 1, 0.5}}, {"two", []float64{2, 4, 0.25}}},
	}
	all := draw(t, p.SVG)
	hasText(t, all, "Time", "a note", "ms", "floor", "the least", "work", "what it does", "rest", "what is left", "one", "3.50", "two", "6.25", "1.00", "4.00")
	origin, scale := mark(t, all, "muted middle", "0").X, mark(t, all, "muted middle", "1").X-mark(t, all, "muted middle", "0").X
	for _, b := range p.Bars {
		x := origin
		for i, v := range b.Values {
			area := titled(t, all, fmt.Sprintf("%s, %s: %.2f", b.Name, p.Parts[i].Name, v))
			if area.Class != fmt.Sprintf("area%d", i) || math.Abs(area.X-x) > 0.2 || math.Abs(area.Width-v*scale) > 0.2 {
				t.Errorf("%s is drawn as %s from %g, %g wide, not from %.1f, %.1f wide", area.Title, area.Class, area.X, area.Width, x, v*scale)
			}
			x += v * scale
		}
	}
}

// Each theme has a colour of its own for each series.
func TestThemes(t *testing.T) {
	t.Parallel()
	svg := lines.SVG()
	for _, theme := range []theme{light, dark} {
		if !strings.Contains(svg, theme.css()) {
			t.Errorf("the colours on %s are missing", theme.paper)
		}
		seen := map[string]bool{theme.paper: true}
		for _, colour := range theme.series {
			if seen[colour] {
				t.Errorf("on %s, %s is there twice", theme.paper, colour)
			}
			seen[colour] = true
		}
	}
	if len(light.series) != len(dark.series) {
		t.Error("one theme has more colours")
	}
}

func TestStep(t *testing.T) {
	t.Parallel()
	for most, want := range map[float64]float64{23.4: 5, 7.6: 1, 9: 2, 4: 1, 3.9: 0.5, 100: 20, 0.07: 0.01} {
		if got := step(most); math.Abs(got-want) > want/1e6 {
			t.Errorf("to %g: got %g, want %g", most, got, want)
		}
	}
}

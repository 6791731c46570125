package plot

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Lines is a plot of values over a logarithmic axis.
type Lines struct {
	Title, Note string
	X, Y        string // the axes' labels, with their units
	// At are the positions of the values, in ascending order. A 0 is drawn a decade below the next one, with a break in the axis.
	At    []int
	Lines []Line
}

// Line has a value for each position. There are colours for seven lines.
type Line struct {
	Name   string
	Values []float64
}

const (
	linesHeight                                  = 400
	linesLeft, linesRight, linesTop, linesBottom = 72.0, width - 170.0, 80.0, linesHeight - 66.0
	labelHeight                                  = 17.0
)

// SVG draws the plot. Equal plots give equal text.
func (p Lines) SVG() string {
	var c canvas
	most := 0.0
	for _, l := range p.Lines {
		most = max(most, slices.Max(l.Values))
	}
	distance := step(most)
	top := math.Ceil(most/distance) * distance
	y := func(v float64) float64 { return linesBottom - v/top*(linesBottom-linesTop) }

	for v := 0.0; v <= top+distance/2; v += distance {
		c.line("grid", linesLeft, y(v), linesRight, y(v))
		c.text("muted end", linesLeft-8, y(v)+4, fmt.Sprintf("%g", v))
	}
	p.drawX(&c)
	c.add(`<text class="middle" transform="translate(26 %.1f) rotate(-90)">%s</text>`, (linesTop+linesBottom)/2, html.EscapeString(p.Y))
	for i, l := range p.Lines {
		p.drawLine(&c, i+1, l, y)
	}
	p.drawNames(&c, y)
	return c.document(linesHeight, p.Title, p.Note)
}

// x is the position of the i-th value on the canvas.
func (p Lines) x(i int) float64 {
	decade := func(i int) float64 {
		if p.At[i] == 0 {
			return math.Log10(float64(p.At[i+1])) - 1
		}
		return math.Log10(float64(p.At[i]))
	}
	first, last := decade(0), decade(len(p.At)-1)
	return linesLeft + 20 + (decade(i)-first)/(last-first)*(linesRight-linesLeft-40)
}

func (p Lines) drawX(c *canvas) {
	c.line("axis", linesLeft, linesBottom, linesRight, linesBottom)
	for i, n := range p.At {
		c.line("axis", p.x(i), linesBottom, p.x(i), linesBottom+5)
		c.text("muted middle", p.x(i), linesBottom+21, thousands(n))
	}
	if p.At[0] == 0 {
		middle := (p.x(0) + p.x(1)) / 2
		c.add(`<rect class="paper" x="%.1f" y="%.1f" width="6" height="8"/>`, middle-3, linesBottom-4)
		c.line("axis", middle-6, linesBottom+5, middle, linesBottom-5)
		c.line("axis", middle, linesBottom+5, middle+6, linesBottom-5)
	}
	c.text("middle", (linesLeft+linesRight)/2, linesBottom+46, p.X)
}

func (p Lines) drawLine(c *canvas, colour int, l Line, y func(float64) float64) {
	points := make([]string, len(l.Values))
	for i, v := range l.Values {
		points[i] = fmt.Sprintf("%.1f,%.1f", p.x(i), y(v))
	}
	c.add(`<polyline class="line line%d" points="%s"/>`, colour, strings.Join(points, " "))
	for i, v := range l.Values {
		c.add(`<circle class="area%d" cx="%.1f" cy="%.1f" r="4">%s</circle>`, colour, p.x(i), y(v), tip(fmt.Sprintf("%s, %s: %.1f", l.Name, thousands(p.At[i]), v)))
	}
}

// drawNames writes each line's name and last value beside its end, or a bit lower if that place is taken.
func (p Lines) drawNames(c *canvas, y func(float64) float64) {
	last := func(l Line) float64 { return l.Values[len(l.Values)-1] }
	free := 0.0
	for _, l := range slices.SortedStableFunc(slices.Values(p.Lines), func(a, b Line) int { return cmp.Compare(last(b), last(a)) }) {
		at := max(y(last(l)), free)
		c.text("strong", linesRight-4, at+4, fmt.Sprintf("%s %.1f", l.Name, last(l)))
		free = at + labelHeight
	}
}

// thousands writes 10000 as 10,000.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

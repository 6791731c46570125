package plot

import (
	"fmt"
	"math"
)

// Stack is a plot of horizontal bars that consist of the same parts, with all values in a table below.
type Stack struct {
	Title, Note string
	X           string // the axis' label, with its unit
	Parts       []Part
	Bars        []Bar
}

// Part is what a colour stands for. There are colours for eight parts.
type Part struct{ Name, About string }

// Bar has a value for each part.
type Bar struct {
	Name   string
	Values []float64
}

func (b Bar) sum() float64 {
	sum := 0.0
	for _, v := range b.Values {
		sum += v
	}
	return sum
}

const (
	stackLeft, stackRight, stackTop = 160.0, width - 90.0, 78.0
	barHeight, barDistance          = 34.0, 50.0
	rowHeight                       = 21.0
	columnWidth                     = 150.0
)

// SVG draws the plot. Equal plots give equal text.
func (p Stack) SVG() string {
	var c canvas
	most := 0.0
	for _, b := range p.Bars {
		most = max(most, b.sum())
	}
	distance := step(most)
	top := math.Ceil(most/distance) * distance
	scale := (stackRight - stackLeft) / top
	bottom := stackTop + barDistance*float64(len(p.Bars))

	for v := 0.0; v <= top+distance/2; v += distance {
		x := stackLeft + v*scale
		c.line("grid", x, stackTop, x, bottom)
		c.text("muted middle", x, bottom+18, fmt.Sprintf("%g", v))
	}
	c.text("middle", (stackLeft+stackRight)/2, bottom+40, p.X)
	for i, b := range p.Bars {
		p.drawBar(&c, b, stackTop+barDistance*float64(i)+(barDistance-barHeight)/2, scale)
	}
	height := p.drawTable(&c, bottom+76)
	return c.document(int(height), p.Title, p.Note)
}

func (p Stack) drawBar(c *canvas, b Bar, y, scale float64) {
	c.text("end", stackLeft-10, y+barHeight/2+4, b.Name)
	x := stackLeft
	for i, v := range b.Values {
		c.add(`<rect class="area%d" x="%.1f" y="%.1f" width="%.1f" height="%.0f">%s</rect>`, i, x, y, v*scale, barHeight, tip(fmt.Sprintf("%s, %s: %.2f", b.Name, p.Parts[i].Name, v)))
		x += v * scale
	}
	c.text("strong", x+8, y+barHeight/2+4, fmt.Sprintf("%.2f", b.sum()))
}

// drawTable draws the rows from y down and returns the height of the picture.
func (p Stack) drawTable(c *canvas, y float64) float64 {
	column := func(i int) float64 { return width - 24 - columnWidth*float64(len(p.Bars)-1-i) }
	for i, b := range p.Bars {
		c.text("muted end", column(i), y, b.Name)
	}
	for i, part := range p.Parts {
		y += rowHeight
		c.add(`<rect class="area%d" x="24" y="%.1f" width="12" height="12" rx="2"/>`, i, y-11)
		c.text("strong", 46, y, part.Name)
		c.text("muted", 110, y, part.About)
		for j, b := range p.Bars {
			c.text("end", column(j), y, fmt.Sprintf("%.2f", b.Values[i]))
		}
	}
	return y + rowHeight
}

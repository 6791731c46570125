// Package plot draws lines and stacked bars as SVG, in the colours of the reader's light or dark theme.
//
// It writes the SVG itself because no chart library for Go can follow the theme: gonum/plot writes fixed colours and depends
// on fonts and rasterizers, and go-echarts draws with JavaScript, which GitHub does not run.
package plot

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// width of every plot in pixels. A README on GitHub is a bit wider.
const width = 800

// theme is a set of colours.
type theme struct {
	paper, ink, muted, grid string
	series                  []string
}

// The series have Okabe and Ito's colours, which colour-blind readers can tell apart, between two greys.
var (
	light = theme{"#ffffff", "#1f2328", "#59636e", "#d1d9e0", []string{"#818b98", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#b5a300", "#d55e00", "#c3cbd4"}}
	dark  = theme{"#0d1117", "#f0f6fc", "#9198a1", "#30363d", []string{"#818b98", "#3d9be0", "#e69f00", "#17b890", "#d88fb8", "#e3d443", "#e8702a", "#4a525c"}}
)

func (t theme) css() string {
	var css strings.Builder
	fmt.Fprintf(&css, ".paper{fill:%s}text{fill:%s}.muted{fill:%s}.grid{stroke:%s}.axis{stroke:%s}.strong{stroke:%[1]s}", t.paper, t.ink, t.muted, t.grid, t.muted)
	for i, colour := range t.series {
		fmt.Fprintf(&css, ".area%d{fill:%s}.line%d{stroke:%s}", i, colour, i, colour)
	}
	return css.String()
}

const layoutCSS = `text{font:13px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}.title{font-size:16px;font-weight:600}.strong{font-weight:600;stroke-width:4px;paint-order:stroke}` +
	`.middle{text-anchor:middle}.end{text-anchor:end}.grid,.axis{stroke-width:1}.line{fill:none;stroke-width:2.5}`

// canvas collects what is drawn.
type canvas struct{ strings.Builder }

// add writes an element on a line of its own.
func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

// text writes s at a point of its baseline.
func (c *canvas) text(class string, x, y float64, s string) {
	c.add(`<text class="%s" x="%.1f" y="%.1f">%s</text>`, class, x, y, html.EscapeString(s))
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	c.add(`<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, class, x1, y1, x2, y2)
}

// tip is the tooltip of the element around it.
func tip(s string) string { return "<title>" + html.EscapeString(s) + "</title>" }

// document is the whole picture: paper, title, note and what the canvas holds.
func (c *canvas) document(height int, title, note string) string {
	var d canvas
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %d" role="img">`, width, height, height)
	d.add("%s", tip(title))
	d.add("<style>%s%s@media (prefers-color-scheme:dark){%s}</style>", layoutCSS, light.css(), dark.css())
	d.add(`<rect class="paper" width="%d" height="%d" rx="6"/>`, width, height)
	d.text("title", 24, 32, title)
	d.text("muted", 24, 52, note)
	return d.String() + c.String() + "</svg>\n"
}

// step is the distance between the marks of an axis from 0 to most: 1, 2 or 5 times a power of ten, for four to nine marks.
func step(most float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, times := range []float64{5, 2} {
		if most/(times*power) >= 4 {
			return times * power
		}
	}
	return power
}

package record

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"strconv"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// The picture: pixels, margins and colours.
const (
	pictureWidth, pictureHeight          = 960, 540
	left, right, top, bottom             = 76, 24, 36, 48
	letterWidth, letterHeight, tickCount = 7, 13, 6
)

var (
	ink      = color.RGBA{0x33, 0x33, 0x33, 0xff}
	grid     = color.RGBA{0xe2, 0xe2, 0xe2, 0xff}
	lossLine = color.RGBA{0x1f, 0x6f, 0xb4, 0xff}
	evalLine = color.RGBA{0xd9, 0x5f, 0x02, 0xff}
)

// point is a step and a loss.
type point struct{ x, y float64 }

// plot maps points to pixels.
type plot struct {
	img    *image.RGBA
	x0, x1 float64
	y0, y1 float64
	yTick  float64
}

// PNG draws the curve: the loss of each step, and the evaluations where there are any.
func (c *Curve) PNG(w io.Writer) error {
	var loss, eval []point
	for _, s := range c.steps {
		if v := float64(s.Loss); finite(v) {
			loss = append(loss, point{float64(s.Step), v})
		}
		if s.EvalLoss != nil && finite(float64(*s.EvalLoss)) {
			eval = append(eval, point{float64(s.Step), float64(*s.EvalLoss)})
		}
	}
	p := newPlot(append(append([]point{}, loss...), eval...))
	p.axes()
	p.line(loss, lossLine, 1.5)
	p.line(eval, evalLine, 2)
	for _, at := range eval {
		p.dot(at, evalLine)
	}
	p.legend(len(eval) > 0)
	return png.Encode(w, p.img)
}

func newPlot(all []point) *plot {
	p := &plot{img: image.NewRGBA(image.Rect(0, 0, pictureWidth, pictureHeight)), x0: 0, x1: 1, y0: 0, y1: 1}
	draw.Draw(p.img, p.img.Bounds(), image.White, image.Point{}, draw.Src)
	for i, q := range all {
		if i == 0 {
			p.x0, p.x1, p.y0, p.y1 = q.x, q.x, q.y, q.y
		}
		p.x0, p.x1 = min(p.x0, q.x), max(p.x1, q.x)
		p.y0, p.y1 = min(p.y0, q.y), max(p.y1, q.y)
	}
	if p.x0 == p.x1 {
		p.x1++
	}
	if p.y0 == p.y1 {
		p.y0, p.y1 = p.y0-0.5, p.y1+0.5
	}
	p.yTick = tick(p.y1 - p.y0)
	p.y0, p.y1 = math.Floor(p.y0/p.yTick)*p.yTick, math.Ceil(p.y1/p.yTick)*p.yTick
	return p
}

// tick is a distance of 1, 2 or 5 times a power of ten that cuts span into about tickCount parts.
func tick(span float64) float64 {
	rough := span / tickCount
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 5} {
		if m*power >= rough {
			return m * power
		}
	}
	return 10 * power
}

func (p *plot) px(q point) (float32, float32) {
	x := left + (q.x-p.x0)/(p.x1-p.x0)*(pictureWidth-left-right)
	y := top + (p.y1-q.y)/(p.y1-p.y0)*(pictureHeight-top-bottom)
	return float32(x), float32(y)
}

// axes draws grid, numbers and the frame.
func (p *plot) axes() {
	digits := max(0, int(-math.Floor(math.Log10(p.yTick))))
	for k := 0; ; k++ {
		v := p.y0 + float64(k)*p.yTick
		if v > p.y1+p.yTick/2 {
			break
		}
		_, y := p.px(point{p.x0, v})
		p.fill(left, int(y), pictureWidth-right, int(y)+1, grid)
		label := strconv.FormatFloat(v, 'f', digits, 64)
		p.text(left-6-letterWidth*len(label), int(y)+letterHeight/3, label, ink)
	}
	step := max(tick(p.x1-p.x0), 1)
	for v := math.Ceil(p.x0/step) * step; v <= p.x1; v += step {
		x, _ := p.px(point{v, p.y0})
		p.fill(int(x), top, int(x)+1, pictureHeight-bottom, grid)
		label := fmt.Sprintf("%.0f", v)
		p.text(int(x)-letterWidth*len(label)/2, pictureHeight-bottom+letterHeight+4, label, ink)
	}
	p.fill(left, top, left+1, pictureHeight-bottom, ink)
	p.fill(left, pictureHeight-bottom, pictureWidth-right, pictureHeight-bottom+1, ink)
	p.text((left+pictureWidth-right)/2-2*letterWidth, pictureHeight-10, "step", ink)
}

func (p *plot) legend(eval bool) {
	p.fill(left, top-20, left+24, top-17, lossLine)
	p.text(left+30, top-14, "loss", ink)
	if eval {
		p.fill(left+90, top-20, left+114, top-17, evalLine)
		p.text(left+120, top-14, "evaluation", ink)
	}
}

func (p *plot) fill(x0, y0, x1, y1 int, c color.Color) {
	draw.Draw(p.img, image.Rect(x0, y0, x1, y1), image.NewUniform(c), image.Point{}, draw.Src)
}

func (p *plot) text(x, y int, s string, c color.Color) {
	d := font.Drawer{Dst: p.img, Src: image.NewUniform(c), Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(s)
}

// line connects points by strokes of a width in pixels.
func (p *plot) line(points []point, c color.Color, width float32) {
	z := vector.NewRasterizer(pictureWidth, pictureHeight)
	for i := 1; i < len(points); i++ {
		ax, ay := p.px(points[i-1])
		bx, by := p.px(points[i])
		n := float32(math.Hypot(float64(bx-ax), float64(by-ay)))
		if n == 0 {
			continue
		}
		// A rectangle along the stroke, half a width longer at both ends, so that corners have no gaps.
		ux, uy := (bx-ax)/n*width/2, (by-ay)/n*width/2
		z.MoveTo(ax-ux-uy, ay-uy+ux)
		z.LineTo(bx+ux-uy, by+uy+ux)
		z.LineTo(bx+ux+uy, by+uy-ux)
		z.LineTo(ax-ux+uy, ay-uy-ux)
		z.ClosePath()
	}
	z.Draw(p.img, p.img.Bounds(), image.NewUniform(c), image.Point{})
}

// dot marks a point with a small square.
func (p *plot) dot(at point, c color.Color) {
	x, y := p.px(at)
	p.fill(int(x)-2, int(y)-2, int(x)+3, int(y)+3, c)
}

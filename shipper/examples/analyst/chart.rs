//! Small pictures as SVG, without anything to load from elsewhere.
use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 52.0;
/// Told apart by most eyes that do not see all colours (Okabe and Ito 2008).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// A name and its points.
pub type Series = (String, Vec<(f64, f64)>);

/// A frame with its scales.
struct Frame {
    out: String,
    x_max: f64,
    y_max: f64,
}

/// The next of 1, 2, 5, 10, ... at or over a value.
fn round_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * decade).find(|&step| step >= value * 0.999_999).unwrap_or(value)
}

fn label(value: f64) -> String {
    if value >= 1e6 { format!("{} M", value / 1e6) } else { format!("{value}") }
}

impl Frame {
    fn new(title: &str, x_name: &str, y_name: &str, x_max: f64, y_max: f64) -> Self {
        let (x_step, y_step) = (round_up(x_max / 6.0), round_up(y_max / 5.0));
        let whole = |max: f64, step: f64| (max / step).ceil().max(1.0) * step;
        let mut frame = Self { out: String::new(), x_max: whole(x_max, x_step), y_max: whole(y_max, y_step) };
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        // Infallible, here and below: writing to a String.
        let _ = writeln!(
            frame.out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" \
             role=\"img\" aria-label=\"{title}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"600\" fill=\"#111\">{title}</text>\n\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\">{x_name}</text>\n\
             <text x=\"16\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\" transform=\"rotate(-90 16 {1})\">{y_name}</text>",
            HEIGHT - 10.0,
            TOP + (HEIGHT - TOP - BOTTOM) / 2.0,
        );
        let mut value = 0.0;
        while value <= frame.y_max * 1.000_1 {
            let y = frame.y(value);
            let _ = writeln!(
                frame.out,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                label(value)
            );
            value += y_step;
        }
        let mut value = 0.0;
        while !x_name.is_empty() && value <= frame.x_max * 1.000_1 {
            let x = frame.x(value);
            let _ = writeln!(
                frame.out,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#333\">{}</text>",
                HEIGHT - BOTTOM + 18.0,
                label(value)
            );
            value += x_step;
        }
        frame
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.y_max * (HEIGHT - TOP - BOTTOM)
    }

    fn legend(&mut self, index: usize, name: &str) {
        let y = TOP + 14.0 + 20.0 * index as f64;
        let x = WIDTH - RIGHT + 16.0;
        let _ = writeln!(
            self.out,
            "<circle cx=\"{x}\" cy=\"{}\" r=\"5\" fill=\"{}\"/><text x=\"{}\" y=\"{y}\" fill=\"#333\">{name}</text>",
            y - 4.0,
            COLOURS[index % COLOURS.len()],
            x + 12.0
        );
    }

    fn end(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

fn largest(series: &[Series], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    series.iter().flat_map(|(_, points)| points).map(of).fold(1e-9, f64::max)
}

/// Lines over a common axis.
pub fn lines(title: &str, x_name: &str, y_name: &str, series: &[Series]) -> String {
    let mut frame = Frame::new(title, x_name, y_name, largest(series, |point| point.0), largest(series, |point| point.1));
    for (index, (name, points)) in series.iter().enumerate() {
        let path: String = points.iter().map(|&(x, y)| format!("{:.1},{:.1} ", frame.x(x), frame.y(y))).collect();
        let _ = writeln!(
            frame.out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            path.trim_end(),
            COLOURS[index % COLOURS.len()]
        );
        frame.legend(index, name);
    }
    frame.end()
}

/// One mark per point.
pub fn points(title: &str, x_name: &str, y_name: &str, series: &[Series]) -> String {
    let mut frame = Frame::new(title, x_name, y_name, largest(series, |point| point.0), largest(series, |point| point.1));
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        for &(x, y) in points {
            let _ = writeln!(
                frame.out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\" fill-opacity=\"0.6\"/>",
                frame.x(x),
                frame.y(y)
            );
        }
        frame.legend(index, name);
    }
    frame.end()
}

/// A value per name, with where it may lie.
pub fn intervals(title: &str, y_name: &str, names: &[String], values: &[(f64, f64, f64)]) -> String {
    let top = values.iter().map(|value| value.2).fold(1e-9, f64::max);
    let mut frame = Frame::new(title, "", y_name, values.len() as f64, top);
    // Places for the names: the axis has no scale.
    frame.x_max = values.len() as f64;
    for (index, (&(low, value, high), name)) in values.iter().zip(names).enumerate() {
        let (x, colour) = (frame.x(index as f64 + 0.5), COLOURS[0]);
        let (low_y, y, high_y) = (frame.y(low), frame.y(value), frame.y(high));
        let base = HEIGHT - BOTTOM + 12.0;
        let _ = writeln!(
            frame.out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low_y:.1}\" y2=\"{high_y:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\
             <text x=\"{x:.1}\" y=\"{base}\" font-size=\"9\" fill=\"#333\" transform=\"rotate(35 {x:.1} {base})\">{name}</text>"
        );
    }
    frame.end()
}

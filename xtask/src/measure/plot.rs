//! Plots as SVG: no script, no font, no address in them, readable in light and dark.

use std::fmt::Write;

use super::{Point, shown};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 300.0;
const ROW: f64 = 34.0;
const TOP: f64 = 44.0;
/// Space for a figure behind the longest bar.
const FIGURE: f64 = 130.0;

/// Bars, each figure with its reference below it; all of the same unit.
#[must_use]
pub fn bars(title: &str, points: &[&Point]) -> String {
    let most = points
        .iter()
        .flat_map(|point| [point.value, point.reference.as_ref().map_or(0.0, |reference| reference.value)])
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABEL - FIGURE) / most;
    let height = TOP + ROW * points.len() as f64 + 12.0;
    let mut svg = begin(height, title);
    for (row, point) in points.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let with = if point.with.is_empty() { String::new() } else { format!(", {}", point.with_text()) };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LABEL - 8.0,
            y + 12.0,
            escaped(&format!("{}{with}", point.name))
        );
        bar(&mut svg, y, point.value * scale, "own", &format!("{} {}", shown(point.value), point.unit));
        if let Some(reference) = &point.reference {
            let figure = format!("{} {}", shown(reference.value), escaped(&reference.name));
            bar(&mut svg, y + 14.0, reference.value * scale, "plain", &figure);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, y: f64, width: f64, class: &str, figure: &str) {
    let width = width.max(1.0);
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{LABEL}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"12\"/><text class=\"{class}\" x=\"{:.1}\" y=\"{:.0}\">{figure}</text>",
        LABEL + width + 6.0,
        y + 10.0
    );
}

fn begin(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>text{{fill:#1c2733}}rect.own{{fill:#27608f}}rect.plain{{fill:#b9c6d2}}text.plain{{fill:#5b6b7a}}.ground{{fill:#ffffff}}\
         @media (prefers-color-scheme:dark){{text{{fill:#e4e9ee}}rect.own{{fill:#6cb0e6}}rect.plain{{fill:#4b5a68}}text.plain{{fill:#9fb0bf}}.ground{{fill:#12181e}}}}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n<text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_has_the_whole_width_and_names_are_escaped() {
        let points = [Point::new("a < b", 50.0, "ms").beside("plain", 100.0), Point::new("c", 0.0, "ms")];
        let svg = bars("times", &points.iter().collect::<Vec<_>>());
        assert!(svg.contains("width=\"330.0\"") && svg.contains("width=\"165.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"), "{svg}");
        assert_eq!(svg.matches("<rect class=\"own\"").count(), 2);
    }
}

//! The chart: panels of bars, each the ratio to haproxy, as SVG.

use std::fmt::Write;

/// The largest ratio that is drawn to scale; longer bars are cut off.
const MOST: f64 = 2.5;
/// How many panels stand side by side.
const COLUMNS: usize = 2;
/// The width of a panel, and the gaps around it.
const PANEL: f64 = 470.0;
const GAP: f64 = 24.0;
/// The height of a bar with its distance to the next, and of a panel's head.
const ROW: f64 = 26.0;
const BAR: f64 = 17.0;
const PANEL_HEAD: f64 = 60.0;
/// Where bars begin in a panel, and how long one of ratio 1 is.
const LABELS: f64 = 106.0;
const ONE: f64 = 90.0;
/// The height of the chart's head and foot.
const HEAD: f64 = 84.0;
const FOOT: f64 = 46.0;

/// A figure of several peers.
#[derive(Debug)]
pub(crate) struct Panel {
    /// What it shows.
    pub(crate) title: String,
    /// Which direction is better.
    pub(crate) hint: &'static str,
    /// What we want to reach, as a ratio.
    pub(crate) goal: Option<f64>,
    /// A bar for each peer.
    pub(crate) bars: Vec<Bar>,
}

/// One peer's bar.
#[derive(Debug)]
pub(crate) struct Bar {
    /// The peer's name.
    pub(crate) label: String,
    /// The figure in its own unit.
    pub(crate) text: String,
    /// The ratio to haproxy: the least, the median and the most.
    pub(crate) ratio: [f64; 3],
    /// Its colour.
    pub(crate) colour: &'static str,
    /// Whether it is the one that the chart is about.
    pub(crate) ours: bool,
}

/// Draws all panels under a title, with a caption below.
pub(crate) fn draw(title: &str, subtitle: &str, caption: &str, panels: &[Panel]) -> String {
    let lines = || panels.chunks(COLUMNS).map(|line| (line, height(line)));
    let whole_width = GAP + (PANEL + GAP) * COLUMNS as f64;
    let whole_height = HEAD + lines().map(|(_, height)| height + GAP).sum::<f64>() + FOOT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole_width} {whole_height}\" \
         width=\"{whole_width}\" height=\"{whole_height}\" role=\"img\" \
         font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\" fill=\"#1f2937\">\n\
         <title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"12\" fill=\"#f3f4f6\"/>\n",
        escape(title)
    );
    svg += &text(GAP, 38.0, "font-size=\"21\" font-weight=\"600\"", title);
    svg += &text(GAP, 62.0, "fill=\"#4b5563\"", subtitle);
    let mut y = HEAD;
    for (line, height) in lines() {
        for (column, panel) in line.iter().enumerate() {
            let x = GAP + (PANEL + GAP) * column as f64;
            _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
            draw_panel(&mut svg, panel, height);
            svg += "</g>\n";
        }
        y += height + GAP;
    }
    let y = whole_height - 22.0;
    svg += &text(GAP, y, "font-size=\"12\" fill=\"#4b5563\"", caption);
    svg + "</svg>\n"
}

/// The height of panels that stand side by side.
fn height(line: &[Panel]) -> f64 {
    let rows = line.iter().map(|panel| panel.bars.len()).max();
    PANEL_HEAD + ROW * rows.unwrap_or(0) as f64
}

fn draw_panel(svg: &mut String, panel: &Panel, height: f64) {
    _ = writeln!(
        svg,
        "<rect width=\"{PANEL}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\" stroke=\"#e5e7eb\"/>"
    );
    *svg += &text(14.0, 25.0, "font-weight=\"600\"", &panel.title);
    let right = PANEL - 14.0;
    let faint = "text-anchor=\"end\" font-size=\"12\" fill=\"#6b7280\"";
    *svg += &text(right, 25.0, faint, panel.hint);
    let top = PANEL_HEAD - 14.0;
    let bottom = height - 12.0;
    for (number, bar) in panel.bars.iter().enumerate() {
        draw_bar(svg, bar, top + ROW * number as f64);
        if bar.ours
            && let Some(goal) = panel.goal
        {
            draw_goal(svg, goal, top + ROW * number as f64);
        }
    }
    let one = LABELS + ONE;
    _ = writeln!(
        svg,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"{}\" y2=\"{bottom}\" stroke=\"#111827\" stroke-dasharray=\"3 3\"/>",
        top - 5.0
    );
}

fn draw_bar(svg: &mut String, bar: &Bar, y: f64) {
    let [least, median, most] = bar.ratio.map(|ratio| ratio.clamp(0.0, MOST) * ONE);
    let (colour, weight) = (bar.colour, if bar.ours { 600 } else { 400 });
    let baseline = y + 13.0;
    let label = format!("text-anchor=\"end\" font-weight=\"{weight}\"");
    *svg += &text(LABELS - 8.0, baseline, &label, &bar.label);
    _ = writeln!(
        svg,
        "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>",
        median.max(1.5)
    );
    if bar.ratio[1] > MOST {
        cut(svg, LABELS + median - 22.0, y);
    } else {
        spread(svg, LABELS + least, LABELS + most, y + BAR / 2.0);
    }
    let value = format!("text-anchor=\"end\" font-size=\"12\" font-weight=\"{weight}\"");
    *svg += &text(PANEL - 14.0, baseline, &value, &bar.text);
}

/// Two strokes that show that a bar is longer than drawn.
fn cut(svg: &mut String, x: f64, y: f64) {
    for x in [x, x + 7.0] {
        _ = writeln!(
            svg,
            "<path d=\"M{:.1} {} l-7 {}\" stroke=\"#ffffff\" stroke-width=\"3\"/>",
            x + 7.0,
            y - 2.0,
            BAR + 4.0
        );
    }
}

/// A line from the least to the most.
fn spread(svg: &mut String, from: f64, to: f64, y: f64) {
    _ = writeln!(
        svg,
        "<path d=\"M{from:.1} {:.1}v6m0 -3H{to:.1}m0 -3v6\" fill=\"none\" stroke=\"#111827\" stroke-opacity=\"0.55\"/>",
        y - 3.0
    );
}

/// A mark under our bar, where it is to end.
fn draw_goal(svg: &mut String, goal: f64, y: f64) {
    let x = LABELS + goal.min(MOST) * ONE;
    _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {:.1}l4.5 7h-9z\" fill=\"#b45309\"/>",
        y + BAR - 1.5
    );
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>\n",
        escape(text)
    )
}

/// Text that may stand in XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(ratio: f64) -> Bar {
        Bar {
            label: "a <b> & c".to_owned(),
            text: format!("{ratio}×"),
            ratio: [ratio * 0.9, ratio, ratio * 1.1],
            colour: "#0f766e",
            ours: true,
        }
    }

    fn chart(bars: Vec<Bar>) -> String {
        let panel = Panel {
            title: "<title>".to_owned(),
            hint: "less is better",
            goal: Some(0.5),
            bars,
        };
        draw("all & everything", "", "made > today", &[panel])
    }

    #[test]
    fn text_is_escaped() {
        let svg = chart(vec![bar(1.0)]);
        assert!(svg.contains("a &lt;b&gt; &amp; c"));
        assert!(svg.contains(">&lt;title&gt;</text>"));
        assert!(svg.contains("<title>all &amp; everything</title>"));
    }

    #[test]
    fn every_element_is_closed() {
        let svg = chart(vec![bar(0.4), bar(7.0)]);
        for name in ["svg", "g", "text", "title"] {
            let opened = svg.matches(&format!("<{name}>")).count()
                + svg.matches(&format!("<{name} ")).count();
            assert_eq!(opened, svg.matches(&format!("</{name}>")).count(), "{name}");
        }
    }

    #[test]
    fn bars_are_as_long_as_their_ratio_but_cut_off_at_the_most() {
        let svg = chart(vec![bar(0.5), bar(100.0)]);
        assert!(svg.contains("width=\"45.0\" height=\"17\""), "{svg}");
        assert!(svg.contains("width=\"225.0\" height=\"17\""), "{svg}");
    }
}

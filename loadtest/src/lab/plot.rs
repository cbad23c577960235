//! Results as SVG, by hand: small bars per cell, one row per policy. Bars of a panel share a scale that ends at four times the
//! best, so one saturated policy does not flatten the rest; longer bars are cut and carry their value.
use std::fmt::Write as _;

use super::batch::Outcome;
use super::regret::Regrets;
use super::summary::Summary;

const BAR: f64 = 14.0;
const LABEL: f64 = 150.0;
const WIDTH: f64 = 260.0;
const SCALE_MAX: f64 = 4.0;
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#6a3d9a"];

/// One bar.
struct Bar {
    label: String,
    value: f64,
    colour: usize,
}

struct Panel {
    title: String,
    bars: Vec<Bar>,
}

/// A drawing of panels side by side, `columns` in a row.
fn draw(title: &str, panels: &[Panel], columns: usize) -> String {
    let rows: Vec<&[Panel]> = panels.chunks(columns.max(1)).collect();
    let height_of = |row: &[Panel]| row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0) as f64 * BAR + 40.0;
    let (width, height) =
        (columns as f64 * (LABEL + WIDTH + 70.0) + 20.0, rows.iter().map(|row| height_of(row)).sum::<f64>() + 50.0);
    let mut out = String::new();
    // Writing to a string cannot fail.
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">{}</text>",
        escape(title)
    )
    .ok();
    let mut top = 45.0;
    for row in rows {
        for (column, panel) in row.iter().enumerate() {
            panel_at(&mut out, panel, 10.0 + column as f64 * (LABEL + WIDTH + 70.0), top);
        }
        top += height_of(row);
    }
    out.push_str("</svg>\n");
    out
}

fn panel_at(out: &mut String, panel: &Panel, left: f64, top: f64) {
    let best = panel.bars.iter().map(|bar| bar.value).fold(f64::INFINITY, f64::min).max(1e-9);
    let most = panel.bars.iter().map(|bar| bar.value).fold(0.0, f64::max).min(best * SCALE_MAX).max(1e-9);
    writeln!(out, "<text x=\"{left:.0}\" y=\"{top:.0}\" font-weight=\"bold\">{}</text>", escape(&panel.title)).ok();
    for (at, bar) in panel.bars.iter().enumerate() {
        let y = top + 6.0 + at as f64 * BAR;
        let length = (bar.value / most).min(1.0) * WIDTH;
        let colour = COLOURS.get(bar.colour % COLOURS.len()).copied().unwrap_or("#000");
        let (x, text_y) = (left + LABEL, y + BAR - 5.0);
        writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{text_y:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"{text_y:.0}\">{:.3}</text>",
            x - 4.0,
            escape(&bar.label),
            BAR - 3.0,
            x + length + 3.0,
            bar.value
        )
        .ok();
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

type Figure = (&'static str, fn(&Summary) -> f64);

/// Mean time to first token, mean end to end and hit of every cell.
pub(crate) fn results(outcome: &Outcome) -> String {
    let figures: [Figure; 3] = [
        ("mean TTFT, s", |one| one.ttft_s.mean),
        ("mean E2E, s", |one| one.e2e_s.mean),
        ("hit, share of prompt tokens", |one| one.hit),
    ];
    let mut panels = Vec::new();
    for cell in outcome.cells() {
        for (name, figure) in figures {
            let bars = outcome.policies().into_iter().enumerate().filter_map(|(colour, policy)| {
                let value = outcome.mean(cell, policy, figure)?;
                Some(Bar { label: policy.to_owned(), value, colour })
            });
            panels.push(Panel { title: format!("{cell}: {name}"), bars: bars.collect() });
        }
    }
    draw("Policy lab: means over seeds", &panels, 3)
}

/// Geometric mean and worst of every policy.
pub(crate) fn regrets(regrets: &Regrets) -> String {
    let mut panels = Vec::new();
    for table in &regrets.tables {
        let bars = |value: fn(&super::regret::Regret) -> f64| {
            let rows = table.rows.iter().enumerate();
            rows.map(|(colour, row)| Bar { label: row.policy.clone(), value: value(row), colour }).collect()
        };
        panels.push(Panel { title: format!("{}: geometric mean", table.figure), bars: bars(|row| row.geo_mean) });
        panels.push(Panel { title: format!("{}: worst cell", table.figure), bars: bars(|row| row.worst) });
    }
    draw("Policy lab: regret against the best of each cell", &panels, 2)
}

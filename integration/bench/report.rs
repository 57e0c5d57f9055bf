//! What the run came to: a table for people, JSON for programs.

use serde_json::{Map, Value, json};

use crate::bench::Bench;
use crate::goals::Verdict;
use crate::machine::Machine;
use crate::metric::{self, Metric};
use crate::peers::{Kind, Peer};
use crate::tls;

/// The table and all that has to be said with it, as Markdown.
pub(crate) fn markdown(bench: &Bench, machine: &Machine) -> String {
    let mut text = format!("\n{}\n\n", machine.in_words());
    for peer in &bench.peers {
        text += &format!("- {}: {}\n", peer.kind.name(), peer.version);
    }
    text += &format!("\nLoad averages before: {}.\n", machine.load);
    text += "\nMedians of several rounds, in which all had their turns; in parentheses the ratio to haproxy, a plain TCP relay, with \
             TLS terminating it, with files to nginx (median of the rounds' ratios).\n\n";
    text += &table(&rows(bench));
    text += &format!("\nTLS is {}.\n", tls::IN_WORDS);
    for note in &bench.notes {
        text += &format!("{note}\n");
    }
    text += &format!("It took {} s.\n", bench.elapsed().as_secs());
    text
}

/// Everything with every round's value.
pub(crate) fn json(bench: &Bench, machine: &Machine) -> Value {
    let peers: Map<_, _> = bench
        .peers
        .iter()
        .map(|peer| (peer.kind.name().to_owned(), json!(peer.version)))
        .collect();
    let figures: Map<_, _> = metric::ALL
        .iter()
        .map(|metric| (metric.key.to_owned(), figure(bench, metric)))
        .collect();
    json!({
        "machine": {
            "processor": machine.processor,
            "cores": machine.cores,
            "kernel": machine.kernel,
            "load": machine.load,
        },
        "date": machine.date,
        "quick": bench.options.quick,
        "peers": peers,
        "figures": figures,
        "notes": bench.notes,
    })
}

fn figure(bench: &Bench, metric: &Metric) -> Value {
    let mut by_peer = Map::new();
    for Peer { kind, .. } in &bench.peers {
        let Some(summary) = bench.figures.summary(metric, *kind) else {
            continue;
        };
        let value = json!({
            "rounds": bench.figures.values(metric, *kind),
            "least": summary.least,
            "median": summary.median,
            "most": summary.most,
            "ratio": bench.figures.ratio(metric, *kind).map(|ratio| ratio.median),
        });
        by_peer.insert(kind.name().to_owned(), value);
    }
    let verdict = Verdict::on(metric, &bench.figures);
    json!({
        "label": metric.label,
        "unit": metric.unit,
        "goal": metric.goal.map(|goal| goal.in_words(metric.unit)),
        "verdict": verdict.map(Verdict::in_words),
        "peers": by_peer,
    })
}

/// The table's cells, the head first.
fn rows(bench: &Bench) -> Vec<Vec<String>> {
    let others = || bench.peers.iter().filter(|peer| peer.kind != Kind::Ours);
    let mut head = [
        "figure",
        "unit",
        "websockify",
        "least … most",
        "goal",
        "verdict",
    ]
    .map(str::to_owned)
    .to_vec();
    head.extend(others().map(|peer| peer.kind.name().to_owned()));
    let mut rows = vec![head];
    for metric in metric::ALL {
        let ours = bench.figures.summary(metric, Kind::Ours);
        if !bench
            .peers
            .iter()
            .any(|peer| bench.figures.summary(metric, peer.kind).is_some())
        {
            continue;
        }
        let goal = metric.goal.map(|goal| goal.in_words(metric.unit));
        let verdict = Verdict::on(metric, &bench.figures).map(Verdict::in_words);
        let mut row = vec![
            metric.label.to_owned(),
            metric.unit.to_owned(),
            cell(bench, metric, Kind::Ours),
            ours.map_or_else(String::new, |ours| {
                format!("{} … {}", short(ours.least), short(ours.most))
            }),
            goal.unwrap_or_default(),
            verdict.unwrap_or_default(),
        ];
        row.extend(others().map(|peer| cell(bench, metric, peer.kind)));
        rows.push(row);
    }
    rows
}

/// A peer's median and its ratio.
fn cell(bench: &Bench, metric: &Metric, kind: Kind) -> String {
    let median = bench
        .figures
        .summary(metric, kind)
        .map(|summary| short(summary.median));
    let ratio = bench
        .figures
        .ratio(metric, kind)
        .filter(|_| !Kind::BASES.contains(&kind))
        .map(|ratio| format!(" ({}×)", short(ratio.median)));
    median.map_or_else(
        || "–".to_owned(),
        |median| median + &ratio.unwrap_or_default(),
    )
}

/// Three digits that count.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A Markdown table with aligned columns.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            text += &format!("| {cell:<width$} ");
        }
        text += "|\n";
        if number == 0 {
            for width in &widths {
                text += &format!("|{}", "-".repeat(width + 2));
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_characters() {
        let rows = [["a", "µ–"], ["long", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&rows),
            "| a    | µ– |\n|------|----|\n| long | b  |\n"
        );
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(short(1234.56), "1235");
        assert_eq!(short(12.345), "12.3");
        assert_eq!(short(-0.123), "-0.12");
    }
}

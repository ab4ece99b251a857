//! From samples to medians, ratios, a table and JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::measure::Tally;

/// One round on one system, in the units that are printed.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Writes that failed.
    pub errors: u64,
    /// The first few failures.
    pub error_texts: Vec<String>,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Writes per second.
    pub rate: f64,
    /// Median latency of a write, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of it, milliseconds.
    pub p99_ms: f64,
    /// CPU of the three server processes, seconds per 1000 writes.
    pub server_cpu_s: f64,
    /// CPU of this program, seconds per 1000 writes.
    pub client_cpu_s: f64,
    /// Syncs of the leader's log per write.
    pub syncs: Option<f64>,
}

impl From<Tally> for Sample {
    fn from(tally: Tally) -> Self {
        let (writes, seconds) = (tally.writes as f64, tally.elapsed.as_secs_f64());
        let quantile_ms = |quantile| tally.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            writes: tally.writes,
            errors: tally.errors,
            seconds,
            rate: writes / seconds,
            p50_ms: quantile_ms(0.5),
            p99_ms: quantile_ms(0.99),
            server_cpu_s: tally.server_cpu.as_secs_f64() * 1000.0 / writes,
            client_cpu_s: tally.client_cpu.as_secs_f64() * 1000.0 / writes,
            syncs: tally.log_syncs.map(|syncs| syncs as f64 / writes),
            error_texts: tally.error_texts,
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.0}/s p50 {:.2} ms p99 {:.2} ms", self.rate, self.p50_ms, self.p99_ms)?;
        match self.errors {
            0 => Ok(()),
            errors => write!(formatter, ", {errors} ERRORS, first: {}", self.error_texts.join(" | ")),
        }
    }
}

/// All samples of one number of clients; the outer list follows the systems.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// How many clients.
    pub clients: usize,
    /// Per system, per round.
    pub samples: Vec<Vec<Sample>>,
    /// Per system: all syncs of the leader per write, in a round under strace; empty if there was none.
    pub traced_syncs: Vec<f64>,
}

/// What was measured, as JSON has it.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Name and version of each system.
    pub systems: Vec<String>,
    /// Timed rounds.
    pub rounds: u32,
    /// Length of a round, seconds.
    pub seconds: f64,
    /// Size of a value, bytes.
    pub value_bytes: usize,
    /// Names that are written.
    pub names: usize,
}

type Figure = fn(&Sample) -> Option<f64>;

/// What is shown of a case: name, whether more is better, and how to get it.
const FIGURES: [(&str, &str, Figure); 6] = [
    ("writes 1/s", "more", |sample| Some(sample.rate)),
    ("p50 ms", "less", |sample| Some(sample.p50_ms)),
    ("p99 ms", "less", |sample| Some(sample.p99_ms)),
    ("server CPU s/1000 writes", "less", |sample| Some(sample.server_cpu_s)),
    ("leader's log syncs/write", "less", |sample| sample.syncs),
    ("client CPU s/1000 writes", "", |sample| Some(sample.client_cpu_s)),
];

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Line {
    /// How many clients.
    pub clients: usize,
    /// Name of the figure.
    pub figure: &'static str,
    /// `more`, `less` or nothing: which is better.
    pub better: &'static str,
    /// Median of each system.
    pub medians: Vec<Option<f64>>,
    /// Median, least and greatest of the ratios A/B, each from two rounds next to each other.
    pub ratio: Option<[f64; 3]>,
}

/// The lines of one case.
pub fn lines(report: &CaseReport) -> Vec<Line> {
    let line = |(figure, better, get): (&'static str, &'static str, Figure)| {
        let values = |samples: &Vec<Sample>| samples.iter().map(get).collect::<Vec<_>>();
        let values: Vec<Vec<Option<f64>>> = report.samples.iter().map(values).collect();
        let medians = values.iter().map(|values| median(&values.iter().flatten().copied().collect::<Vec<_>>()));
        let ratio = match values.as_slice() {
            [a, b] => spread(a.iter().zip(b).filter_map(|(a, b)| Some((*a)? / (*b).filter(|b| *b > 0.0)?)).collect()),
            _ => None,
        };
        Line { clients: report.clients, figure, better, medians: medians.collect(), ratio }
    };
    let mut lines: Vec<Line> = FIGURES.into_iter().map(line).collect();
    if !report.traced_syncs.is_empty() {
        lines.push(Line {
            clients: report.clients,
            figure: "leader's syncs/write, all files (strace)",
            better: "less",
            medians: report.traced_syncs.iter().copied().map(Some).collect(),
            ratio: match report.traced_syncs.as_slice() {
                [a, b] if *b > 0.0 => spread(vec![a / b]),
                _ => None,
            },
        });
    }
    lines
}

/// The table of all cases, as Markdown.
pub fn table(reports: &[CaseReport], systems: &[String]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let mut header = vec!["clients".to_owned(), "figure".to_owned(), "better".to_owned()];
    header.extend(systems.iter().cloned());
    if systems.len() == 2 {
        header.push("ratio [min–max]".to_owned());
    }
    let columns = header.len();
    table.set_header(header);
    for line in reports.iter().flat_map(lines) {
        let mut row = vec![line.clients.to_string(), line.figure.to_owned(), line.better.to_owned()];
        row.extend(line.medians.iter().map(|value| value.map_or("–".to_owned(), number)));
        if columns > row.len() {
            row.push(line.ratio.map_or("–".to_owned(), |[mid, low, high]| {
                format!("{} [{}–{}]", number(mid), number(low), number(high))
            }));
        }
        table.add_row(row);
    }
    for index in 3..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.to_string();
    for report in reports {
        for (system, samples) in systems.iter().zip(&report.samples) {
            let errors: u64 = samples.iter().map(|sample| sample.errors).sum();
            if errors > 0 {
                text.push_str(&format!("\nERRORS: {} clients, {system}: {errors}", report.clients));
            }
        }
    }
    text
}

/// Setting, summary and all samples as JSON.
pub fn json(setting: &Setting, reports: &[CaseReport]) -> serde_json::Result<String> {
    let summary: Vec<_> = reports.iter().flat_map(lines).collect();
    serde_json::to_string_pretty(&serde_json::json!({ "setting": setting, "summary": summary, "cases": reports }))
}

/// Writes that failed, over all cases.
pub fn errors(reports: &[CaseReport]) -> u64 {
    reports.iter().flat_map(|report| &report.samples).flatten().map(|sample| sample.errors).sum()
}

/// The middle value, or the mean of the two middle ones.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn spread(ratios: Vec<f64>) -> Option<[f64; 3]> {
    let low = ratios.iter().copied().min_by(f64::total_cmp)?;
    let high = ratios.iter().copied().max_by(f64::total_cmp)?;
    Some([median(&ratios)?, low, high])
}

fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rate: f64, syncs: Option<f64>) -> Sample {
        Sample {
            writes: 1,
            errors: 0,
            error_texts: Vec::new(),
            seconds: 1.0,
            rate,
            p50_ms: 1.0,
            p99_ms: 1.0,
            server_cpu_s: 1.0,
            client_cpu_s: 1.0,
            syncs,
        }
    }

    #[test]
    fn median_of_no_odd_and_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_those_of_paired_rounds() {
        let a = vec![sample(10.0, Some(0.5)), sample(40.0, None)];
        let b = vec![sample(10.0, Some(1.0)), sample(10.0, Some(1.0))];
        let lines = lines(&CaseReport { clients: 1, samples: vec![a, b], traced_syncs: vec![1.0, 2.0] });
        assert_eq!(lines[0].ratio, Some([2.5, 1.0, 4.0]));
        assert_eq!(lines[4].medians, [Some(0.5), Some(1.0)]);
        assert_eq!(lines[4].ratio, Some([0.5, 0.5, 0.5]));
        assert_eq!(lines[6].ratio, Some([0.5, 0.5, 0.5]));
    }
}

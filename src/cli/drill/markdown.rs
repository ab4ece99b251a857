//! A report as people read it.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::{Gap, Latency, ObjectiveResult, Report, Unit, Verdict};

/// The report as Markdown.
pub(super) fn render(report: &Report) -> String {
    let verdict = match report.verdict {
        Verdict::Pass => "pass",
        Verdict::Broken => "broken",
    };
    let mut text = format!(
        "# Drill {}: {verdict}\n\nRun `{}` of {}, flotilla {}, nodes {}. Times are seconds since its beginning.\n",
        report.scenario,
        report.run,
        report.started_at,
        report.version,
        report.nodes.join(", ")
    );
    let parts = [
        objectives(report),
        list("Problems", &report.problems),
        timeline(report),
        operations(report),
        troubles(report),
        gaps(report),
        read_back(report),
        tag_reads(report),
    ];
    parts.iter().filter(|part| !part.is_empty()).for_each(|part| {
        text.push('\n');
        text.push_str(part);
    });
    if report.left_behind > 0 {
        // Writing to a String cannot fail; so below.
        let _ = writeln!(text, "\n{} manifests in `drill/{}` could not be deleted.", report.left_behind, report.run);
    }
    text
}

fn objectives(report: &Report) -> String {
    let rows = report.objectives.iter().map(|objective| {
        let met = if objective.met { "met" } else { "**broken**" };
        let value = objective.value.map_or("not measured".to_owned(), |value| amount(objective, value));
        vec![objective.name.clone(), format!("≤ {}", amount(objective, objective.limit)), value, met.to_owned()]
    });
    section("Objectives", &["objective", "limit", "found", ""], rows)
}

fn amount(objective: &ObjectiveResult, value: f64) -> String {
    match objective.unit {
        Unit::Ms => time(value),
        Unit::Count => format!("{value}"),
    }
}

fn timeline(report: &Report) -> String {
    let rows = report.timeline.iter().map(|event| vec![seconds(event.at_ms), event.what.clone()]);
    section("Timeline", &["s", "what"], rows)
}

fn operations(report: &Report) -> String {
    let heads = ["operation", "ok", "failed", "unknown", "p50 / p99 before", "during", "after"];
    let rows = report.operations.iter().map(|kind| {
        let counts = [kind.ok, kind.failed, kind.unknown].map(|count| count.to_string());
        let latencies = [&kind.before, &kind.during, &kind.after].map(|latency| both(latency.as_ref()));
        [kind.kind.clone()].into_iter().chain(counts).chain(latencies).collect()
    });
    let note = "\nfailed: it had no effect; unknown: it may have had it. Percentiles are of those that succeed.\n";
    section("Operations", &heads, rows) + note
}

fn both(latency: Option<&Latency>) -> String {
    latency.map_or("-".to_owned(), |latency| format!("{} / {}", time(latency.p50_ms), time(latency.p99_ms)))
}

fn troubles(report: &Report) -> String {
    let rows = report
        .troubles
        .iter()
        .map(|trouble| vec![seconds(trouble.at_ms), trouble.kind.clone(), trouble.reason.clone()]);
    section("First operations without success", &["s", "operation", "reason"], rows)
}

fn gaps(report: &Report) -> String {
    let line =
        |what: &str, gap: &Gap| format!("- {what}: {}, from {} s on\n", time(gap.longest_ms), seconds(gap.began_at_ms));
    let (push, pull) = (line("push", &report.without_push), line("pull", &report.without_pull));
    format!("## Longest time without a success\n\n{push}{pull}")
}

fn read_back(report: &Report) -> String {
    let found = &report.read_back;
    let mut text = format!(
        "## Read back\n\n{} acknowledged pushes, each read from {} nodes by digest and by tag: {} lost.\n",
        found.pushes, found.nodes, found.lost
    );
    found.examples.iter().for_each(|example| text.push_str(&format!("- {example}\n")));
    text
}

fn tag_reads(report: &Report) -> String {
    let found = &report.tag_reads;
    let mut text = format!(
        "## Reads of a tag that moves\n\n{} claimed to be the latest, {} of them were stale; {} warned that they may be.\n",
        found.judged, found.stale, found.warned
    );
    found.examples.iter().for_each(|example| text.push_str(&format!("- {example}\n")));
    text
}

fn list(head: &str, items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: String = items.iter().map(|item| format!("- {item}\n")).collect();
    format!("## {head}\n\n{items}")
}

/// A head and a table; nothing where there are no rows.
fn section(head: &str, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: String = rows.map(|cells| row(&cells)).collect();
    if rows.is_empty() {
        return String::new();
    }
    let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let rule = "| --- ".repeat(columns.len());
    format!("## {head}\n\n{}{rule}|\n{rows}", row(&columns))
}

fn row(cells: &[String]) -> String {
    let cells: Vec<String> =
        cells.iter().map(|cell| cell.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn seconds(ms: f64) -> String {
    format!("{:.2}", ms / 1_000.0)
}

/// A time with three figures or so.
fn time(ms: f64) -> String {
    match ms {
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.2} s", ms / 1_000.0),
        ms => humantime::format_duration(Duration::from_secs((ms / 1_000.0) as u64)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn a_report_is_rendered_as_in_the_golden_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drill/report.md");
        let rendered = render(&example());
        if std::env::var_os("UPDATE_GOLDEN").is_some() && !std::path::Path::new(path).exists() {
            std::fs::write(path, &rendered).expect("written");
        }
        let golden = std::fs::read_to_string(path).expect("the golden file");
        assert_eq!(rendered, golden, "review the difference, then remove {path} and run with UPDATE_GOLDEN=1");
    }

    #[test]
    fn the_form_of_the_json_is_that_of_the_golden_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drill/report.json");
        let json = example().json().expect("JSON") + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() && !std::path::Path::new(path).exists() {
            std::fs::write(path, &json).expect("written");
        }
        let golden = std::fs::read_to_string(path).expect("the golden file");
        assert_eq!(json, golden, "reports that people keep must stay readable: fields may be added only");
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!(
            [0.4, 99.94, 500.4, 1_812.25, 90_000.0].map(time),
            ["0.4 ms", "99.9 ms", "500 ms", "1.81 s", "1m 30s"]
        );
    }
}

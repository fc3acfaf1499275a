//! `./dev bench report`: the figures of docs/benchmarks.md and its plots, made of the runs that are kept in
//! docs/benchmarks/. What stands around them is written by people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Outcome;

use super::{KEPT, Kept, Point, plot, read, shown};

const PAGE: &str = "docs/benchmarks.md";
const IMAGES: &str = "docs/images";
const BEGIN: &str = "<!-- figures: written by ./dev bench report -->";
const END: &str = "<!-- end of the figures -->";

/// Writes the page and the plots.
///
/// # Errors
/// A run cannot be read, or the page lacks its place for figures.
pub fn run() -> Outcome<bool> {
    let mut files: Vec<_> =
        fs::read_dir(KEPT)?.map(|file| file.map(|file| file.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let runs = files.iter().map(|path| read(path)).collect::<Outcome<Vec<Kept>>>()?;
    for kept in &runs {
        for (name, svg) in plots(kept) {
            fs::write(Path::new(IMAGES).join(name), svg)?;
        }
    }
    let page = fs::read_to_string(PAGE)?;
    fs::write(PAGE, rewritten(&page, &runs)?)?;
    println!("{PAGE}: {} benchmarks", runs.len());
    Ok(true)
}

/// The page with the figures of these runs in their place.
fn rewritten(page: &str, runs: &[Kept]) -> Outcome<String> {
    let places = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        places.ok_or_else(|| format!("{PAGE} has no place for figures: {BEGIN} … {END}"))?;
    let sections: String = runs.iter().map(section).collect();
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", sections.trim_end()))
}

fn section(kept: &Kept) -> String {
    let head = &kept.head;
    let mut text = format!(
        "### {}\n\n{}, commit {}, load before {:.1} and after {:.1}. {}.\n\n",
        head.scenario,
        head.date,
        head.commit,
        head.load_before,
        head.load_after,
        head.machine_text()
    );
    text += "| Figure | With | Value | Reference | Ratio | Asked for |\n|---|---|---:|---:|---:|---|\n";
    for point in &kept.points {
        let reference = point.reference.as_ref().map_or_else(String::new, |reference| {
            format!("{} {} ({})", shown(reference.value), point.unit, reference.name)
        });
        let more = point.percentiles.map_or_else(String::new, |found| {
            format!("; p99 {}, max {}", shown(found.p99_ms), shown(found.max_ms))
        });
        let verdict = match point.is_kept() {
            None => "",
            Some(true) => ": kept",
            Some(false) => ": **missed**",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} {}{more} | {reference} | {} | {}{verdict} |",
            point.name,
            point.with_text(),
            shown(point.value),
            point.unit,
            point.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            point.limit_text()
        );
    }
    for (name, _) in plots(kept) {
        let _ = write!(text, "\n![{} of {}](images/{name})\n", unit_of(&name), head.scenario);
    }
    text.push('\n');
    text
}

/// A plot for each unit that has more than one figure.
fn plots(kept: &Kept) -> Vec<(String, String)> {
    let mut units: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in &kept.points {
        units.entry(&point.unit).or_default().push(point);
    }
    let scenario = &kept.head.scenario;
    let several = units.into_iter().filter(|(_, points)| points.len() > 1);
    several
        .map(|(unit, points)| {
            let name = format!("bench-{scenario}-{}.svg", unit.replace(['/', ' '], "per"));
            (name, plot::bars(&format!("{scenario}, {unit}"), &points))
        })
        .collect()
}

fn unit_of(name: &str) -> &str {
    name.trim_end_matches(".svg").rsplit('-').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::super::Head;
    use super::*;

    #[test]
    fn figures_go_where_they_belong_and_nothing_else_changes() {
        let head = Head {
            scenario: "churn".to_owned(),
            date: "2026-01-02 03:04".to_owned(),
            commit: "abc".to_owned(),
            processor: "one".to_owned(),
            processors: 2,
            memory_gib: 24,
            kernel: "6.1".to_owned(),
            postgres: Some(15),
            load_before: 0.1,
            load_after: 0.2,
        };
        let points =
            vec![Point::new("created", 500.0, "1/s").with("shapes", 1_000).beside("pgbench", 1_000.0)];
        let kept = Kept { head, points };
        let page = format!("# Benchmarks\n\nBefore.\n{BEGIN}\nold\n{END}\nAfter.\n");
        let once = rewritten(&page, std::slice::from_ref(&kept)).expect("rewrites");
        assert!(once.starts_with("# Benchmarks\n\nBefore.\n") && once.ends_with("\nAfter.\n"), "{once}");
        assert!(
            once.contains("| created | 1,000 shapes | 500 1/s | 1,000 1/s (pgbench) | 0.50 |  |"),
            "{once}"
        );
        assert!(!once.contains("old"));
        assert_eq!(rewritten(&once, &[kept]).expect("rewrites"), once, "the same runs make the same page");
        assert!(rewritten("# No place", &[]).is_err());
    }
}

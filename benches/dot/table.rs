//! The text of a report, drawn from the results alone.

use std::collections::BTreeMap;

use crate::{
    cells::Dtype,
    machine::Machine,
    process::{GEMM, OURS, YARDSTICKS},
    results::{Row, Run},
    worker::Pass,
};

/// The machine; then for each allocator wins, losses and means, and one row for each cell and pass; then who was wrong.
pub fn table(run: &Run) -> String {
    let mut text = machine(&run.machine);
    for allocator in &run.allocators {
        let rows: Vec<Row> = run.rows(allocator).collect();
        text += &format!("\n### Allocator: {allocator}\n\n");
        text += &summary(&rows);
        text += &by_engine(run, allocator);
        text += &cells(run, &rows, allocator);
    }
    text + &remarks(run)
}

/// What is lost and what is won, without the single cells; the picture shows them.
pub fn growth(run: &Run) -> String {
    let sections = run.allocators.iter().map(|allocator| {
        let rows: Vec<Row> = run.rows(allocator).collect();
        format!("\n### Allocator: {allocator}\n\n{}", summary(&rows))
    });
    machine(&run.machine) + &sections.collect::<String>() + &remarks(run)
}

fn machine(machine: &Machine) -> String {
    let mut text = format!("- {}, {} cores; {}\n", machine.cpu, machine.cores, machine.caches.join(", "));
    text += &format!("- threads of each engine: {}; {}\n", machine.threads, machine.system);
    if let Some(memory) = &machine.bandwidth {
        let [read, copy, triad] = [memory.read, memory.copy, memory.triad].map(|speed| short(speed / 1e9));
        let size = memory.working_set >> 20;
        text += &format!("- memory ({size} MiB): read {read}, copy {copy}, triad {triad} GB/s\n");
    }
    if let Some(device) = &machine.device {
        let rates = device.matmul.iter().map(|(dtype, speed)| format!("{} {}", dtype.name(), short(speed / 1e9)));
        let rates = rates.collect::<Vec<_>>().join(", ");
        text += &format!("- device: {}; copy {} GB/s; Burn's matmul: {rates} GFLOPS\n", device.name, short(device.copy / 1e9));
    }
    text += &format!("- {}\n", machine.versions.join("; "));
    let (before, after) = (&machine.load_before, &machine.load_after);
    let after = if after.is_empty() { "(this run was cut short)" } else { after };
    text + &format!("- {}; commit {}; load average {before} before, {after} after\n", machine.date, machine.commit)
}

/// How the rows of an allocator ended.
struct Score<'a> {
    rows: usize,
    mean: f64,
    /// The worst first.
    lost: Vec<(f64, &'a Row<'a>)>,
    /// Where ours was wrong or died there is no ratio, and the row is lost all the same.
    failed: Vec<&'a Row<'a>>,
}

impl<'a> Score<'a> {
    fn new(rows: &'a [Row<'a>]) -> Self {
        let all = ratios(rows, None);
        let failed: Vec<&Row> = rows.iter().filter(|row| row.has_failed()).collect();
        let below = |row: &'a Row<'a>| Some((row.ratio().filter(|ratio| *ratio < 1.0)?, row));
        let mut lost: Vec<(f64, &Row)> = rows.iter().filter_map(below).collect();
        lost.sort_by(|a, b| a.0.total_cmp(&b.0));
        Score { rows: all.len() + failed.len(), mean: mean(&all), lost, failed }
    }

    fn lost(&self) -> usize {
        self.lost.len() + self.failed.len()
    }

    fn won(&self) -> usize {
        self.rows - self.lost()
    }
}

fn ratios(rows: &[Row], pass: Option<Pass>) -> Vec<f64> {
    rows.iter().filter(|row| pass.is_none_or(|pass| row.pass == pass)).filter_map(Row::ratio).collect()
}

fn summary(rows: &[Row]) -> String {
    let score = Score::new(rows);
    if score.rows == 0 {
        return "Nothing to compare with.\n\n".into();
    }
    let [forward, backward] = Pass::ALL.map(|pass| short(mean(&ratios(rows, Some(pass)))));
    let mut text = format!(
        "Against the fastest of all other engines in each of {} rows: **{} won, {} lost, geometric mean of ratios {}** \
         (forward {forward}, forward+backward {backward}).\n\n",
        score.rows,
        score.won(),
        score.lost(),
        short(score.mean),
    );
    let failed = score.failed.iter().map(|row| format!("- {}: **{OURS} gave no right answer**\n", row.title()));
    let lost: String = failed.chain(score.lost.iter().map(|(ratio, row)| loss(*ratio, row))).collect();
    if !lost.is_empty() {
        text += &format!("Lost:\n\n{lost}\n");
    }
    text
}

/// Cells and engines that the crate's README shows.
const IN_SHORT: [&str; 8] = ["row-small", "row-4k", "row-64k", "matvec", "attn", "big-gemm", "pairs-512", "long-k"];
const ENGINES_IN_SHORT: [(&str, &str); 7] = [
    ("composed", "composed in Burn"),
    ("burn", "Burn `linalg`, `matmul`"),
    ("torch", "torch"),
    ("torch-compile", "torch.compile"),
    ("torch-autotune", "max-autotune"),
    ("jax", "JAX"),
    ("keras-tf", "Keras on TF"),
];

/// Cosines with both gradients, in microseconds, and how the whole table ended.
pub fn in_short(run: &Run) -> String {
    let allocator = &run.allocators[0];
    let names = ENGINES_IN_SHORT.map(|(_, name)| name).join(" | ");
    let mut text = format!("| µs, forward+backward, cosine | burn-dot | {names} |\n|---|{}\n", "---:|".repeat(8));
    let rows: Vec<Row> = run.rows(allocator).collect();
    for cell in IN_SHORT {
        let is_shown = |row: &&Row| {
            let case = &row.entry.case;
            case.cell == cell && case.normalize && case.dtype == Dtype::F32 && row.pass == Pass::Backward
        };
        let Some(row) = rows.iter().find(is_shown) else { continue };
        let shape = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        let case = &row.entry.case;
        let all = if case.batch_dims == 0 { ", all pairs" } else { "" };
        let time = |engine: &str| row.entry.of(engine, allocator).and_then(|measured| measured.median(row.pass));
        let others = ENGINES_IN_SHORT.map(|(engine, _)| or_dash(time(engine))).join(" | ");
        text += &format!("| {} · {}{all} | {} | {others} |\n", shape(&case.lhs), shape(&case.rhs), or_dash(time(OURS)));
    }
    let (score, machine) = (Score::new(&rows), &run.machine);
    let others = run.others().count();
    text += &format!(
        "\n{}, {} cores, default allocator, every engine's turn in each round (commit `{}`, {}). Against the fastest of the {others} other\n\
         engines, this crate's own composition among them, {} of {} rows are won and {} lost, with a geometric mean of the ratios of {}",
        machine.cpu,
        machine.cores,
        machine.commit,
        machine.date,
        score.won(),
        score.rows,
        score.lost(),
        short(score.mean)
    );
    if let Some((ratio, row)) = score.lost.first() {
        let engine = row.best.map_or("", |(engine, _)| engine);
        text += &format!(";\nat worst {} of the speed of {engine} ({})", short(*ratio), row.title());
    }
    text + ". All of it: `benches/README.md`.\n"
}

fn loss(ratio: f64, row: &Row) -> String {
    let (engine, time) = row.best.expect("a row with a ratio has a best engine");
    let ours = row.ours.map_or(String::new(), short);
    let rounds = row.entry.measured.iter().map(|measured| measured.times(row.pass).len()).max().unwrap_or_default();
    let title = row.title();
    format!(
        "- {title}: **{}**, {engine} {} µs, {OURS} {ours}, ahead in {} of {rounds} rounds\n",
        short(ratio),
        short(time),
        row.ahead
    )
}

/// The same against each engine alone.
fn by_engine(run: &Run, allocator: &str) -> String {
    let mut text = String::from("| against | rows | lost | geometric mean |\n|---|---:|---:|---:|\n");
    for engine in run.others() {
        let ratios: Vec<f64> = run.rows(allocator).filter_map(|row| ratio(&row, engine, allocator)).collect();
        if !ratios.is_empty() {
            let lost = ratios.iter().filter(|ratio| **ratio < 1.0).count();
            text += &format!("| {engine} | {} | {lost} | {} |\n", ratios.len(), short(mean(&ratios)));
        }
    }
    text + "\n"
}

fn ratio(row: &Row, engine: &str, allocator: &str) -> Option<f64> {
    Some(row.entry.of(engine, allocator)?.median(row.pass)? / row.ours?)
}

fn cells(run: &Run, rows: &[Row], allocator: &str) -> String {
    let engines: Vec<&String> = run.others().collect();
    let names = engines.iter().map(|engine| engine.as_str()).collect::<Vec<_>>().join(" | ");
    let mut text = format!(
        "| cell | pass | fastest other | **its ratio** | {names} | {OURS}, µs | yardstick, µs | part of its speed | {GEMM} |\n\
         |---|---|---|---:|{}---:|---:|---:|---:|\n",
        "---:|".repeat(engines.len())
    );
    for row in rows {
        let each = engines.iter().map(|engine| match ratio(row, engine, allocator) {
            Some(ratio) => short(ratio),
            None if row.entry.of(engine, allocator).is_some_and(|measured| measured.wrong.is_some()) => "wrong".into(),
            None => "–".into(),
        });
        text += &format!(
            "| {} | {} | {} | **{}** | {} | {} | {} | {} | {} |\n",
            row.entry.case.title(),
            row.pass.name(),
            row.best.map_or("–", |(engine, _)| engine),
            or_dash(row.ratio()),
            each.collect::<Vec<_>>().join(" | "),
            or_dash(row.ours),
            or_dash(row.yardstick),
            or_dash(row.yardstick.zip(row.ours).map(|(yardstick, ours)| yardstick / ours)),
            or_dash(row.gemm.zip(row.ours).map(|(gemm, ours)| gemm / ours)),
        );
    }
    text
}

/// Who gave wrong answers, and who did not do what.
fn remarks(run: &Run) -> String {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let all = run.cases.iter().flat_map(|entry| entry.measured.iter().map(move |measured| (entry, measured)));
    // Each yardstick is for some cells by its nature.
    for (entry, measured) in all.filter(|(_, measured)| !YARDSTICKS.contains(&&measured.engine[..])) {
        if let Some(reason) = measured.wrong.as_ref().or(measured.skip.as_ref()) {
            let cells = reasons.entry(format!("{}: {reason}", measured.engine)).or_default();
            let title = entry.case.title();
            if !cells.contains(&title) {
                cells.push(title);
            }
        }
    }
    let lines = reasons.iter().map(|(reason, cells)| match cells.len() {
        0..=6 => format!("- {reason} ({})\n", cells.join("; ")),
        many => format!("- {reason} ({many} cells)\n"),
    });
    if reasons.is_empty() {
        String::new()
    } else {
        format!("\nWrong, so not timed, or not done:\n\n{}", lines.collect::<String>())
    }
}

fn mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

fn or_dash(number: Option<f64>) -> String {
    number.map_or("–".into(), short)
}

/// Three digits, without an exponent.
fn short(number: f64) -> String {
    let digits = (2 - number.abs().log10().floor() as i32).clamp(0, 2) as usize;
    format!("{number:.digits$}")
}

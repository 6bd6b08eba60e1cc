//! What a run found: the table, the raw numbers, the pictures.

use std::{collections::BTreeMap, fs, path::Path, process::Command, thread};

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde::Serialize;

use crate::cells::{Case, Kind};
use crate::worker::What;

const PEERS: [&str; 4] = ["torch", "torch-compile", "jax", "keras-tf"];
const PASSES: [(What, &str); 2] = [(What::Forward, "forward"), (What::Backward, "forward+backward")];

/// What one engine did with one case.
#[derive(Default, Serialize)]
pub struct Measured {
    /// Why it was not run.
    pub skip: Option<String>,
    /// Why it was not timed.
    pub wrong: Option<String>,
    pub note: Option<String>,
    /// Output alone, or output and gradients.
    #[serde(skip)]
    pub results: usize,
    #[serde(serialize_with = "spread")]
    pub forward: Vec<f64>,
    #[serde(serialize_with = "spread")]
    pub backward: Vec<f64>,
}

impl Measured {
    pub fn can(&self, what: What) -> bool {
        self.wrong.is_none() && self.results >= if what == What::Forward { 1 } else { 3 }
    }

    pub fn times(&mut self, what: What) -> &mut Vec<f64> {
        if what == What::Forward { &mut self.forward } else { &mut self.backward }
    }

    fn median(&self, what: What) -> Option<f64> {
        quantile(if what == What::Forward { &self.forward } else { &self.backward }, 0.5)
    }
}

fn quantile(times: &[f64], part: f64) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let at = part * times.len().checked_sub(1)? as f64;
    let (low, high) = (times[at.floor() as usize], times[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

fn spread<S: serde::Serializer>(times: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    [0.25, 0.5, 0.75].map(|part| quantile(times, part)).serialize(serializer)
}

/// One case, and what each engine did with it, by name.
#[derive(Serialize)]
struct Entry {
    case: Case,
    /// Microseconds: lower quartile, median, upper quartile.
    engines: BTreeMap<String, Measured>,
}

/// Everything that a run found.
#[derive(Serialize)]
pub struct Run {
    machine: Vec<String>,
    rounds: u32,
    allocator: Option<String>,
    engines: Vec<String>,
    cases: Vec<Entry>,
}

impl Run {
    pub fn new(versions: Vec<String>, threads: usize, rounds: u32, allocator: Option<String>, load: &str) -> Self {
        let machine = machine(versions, threads, allocator.as_deref(), load);
        Run { machine, rounds, allocator, engines: Vec::new(), cases: Vec::new() }
    }

    pub fn add(&mut self, case: Case, measured: Vec<(String, Measured)>) {
        if self.engines.is_empty() {
            let bare = measured.iter().filter(|(name, _)| !name.contains('+'));
            self.engines = bare.map(|(name, _)| name.clone()).collect();
        }
        self.cases.push(Entry { case, engines: measured.into_iter().collect() });
    }

    /// The engine under each allocator.
    fn measured<'a>(&'a self, entry: &'a Entry, engine: &str) -> impl Iterator<Item = &'a Measured> {
        let names = [Some(engine.to_string()), self.allocator.as_ref().map(|name| format!("{engine}+{name}"))];
        names.into_iter().flatten().filter_map(|name| entry.engines.get(&name))
    }

    /// The median of the faster allocator.
    fn best(&self, entry: &Entry, engine: &str, what: What) -> Option<f64> {
        self.measured(entry, engine).filter_map(|measured| measured.median(what)).reduce(f64::min)
    }

    fn best_peer(&self, entry: &Entry, what: What) -> Option<(&'static str, f64)> {
        let peers = PEERS.iter().filter_map(|&peer| Some((peer, self.best(entry, peer, what)?)));
        peers.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The yardstick of a case: the loops of the memory, or the better of gemm and torch.
    fn bound(&self, entry: &Entry, what: What) -> Option<f64> {
        let yardsticks: &[&str] = if entry.case.kind == Kind::Gemm { &["gemm", "torch"] } else { &["limit"] };
        yardsticks.iter().filter_map(|engine| self.best(entry, engine, what)).reduce(f64::min)
    }
}

/// How busy the machine is; to be asked before the workers start.
pub fn load_average() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().into()
}

/// What it ran on, line by line.
fn machine(versions: Vec<String>, threads: usize, allocator: Option<&str>, load: &str) -> Vec<String> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_string()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("unknown CPU");
    let cache = |index: usize| {
        let read = |what| fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}")).ok();
        Some(format!("L{} {} {}", read("level")?.trim(), read("type")?.trim().to_lowercase(), read("size")?.trim()))
    };
    let caches: Vec<_> = (0..5).filter_map(cache).collect();
    let lock = include_str!("../../Cargo.lock");
    let locked = |name: &str| {
        let start = lock.find(&format!("name = \"{name}\"\n")).unwrap_or_default();
        format!("{name} {}", lock[start..].split('"').nth(3).unwrap_or_default())
    };
    let own = [said("rustc", &["--version"]), locked("burn"), locked("candle-core"), locked("gemm")];
    let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
    for version in versions.iter().flat_map(|versions| versions.split("; ")) {
        if !all.contains(&version) {
            all.push(version);
        }
    }
    vec![
        format!("{model}, {} cores; {}", thread::available_parallelism().map_or(0, usize::from), caches.join(", ")),
        format!("{threads} threads; allocators: the system's{}", allocator.map(|name| format!(", {name}")).unwrap_or_default()),
        all.join("; "),
        format!("{}; load average before the run {load}", said("date", &["-u", "+%F"])),
    ]
}

/// Writes a file under another name first, so that a failure leaves what was there before.
fn save(folder: &Path, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (part, whole) = (folder.join(format!("part.{name}")), folder.join(name));
    write(&part).and_then(|()| Ok(fs::rename(&part, &whole)?)).with_context(|| format!("cannot write {}", whole.display()))
}

pub fn write(folder: &Path, run: &Run) -> Result<()> {
    save(folder, "results.json", |file| Ok(fs::write(file, serde_json::to_string_pretty(run)?)?))?;
    save(folder, "table.md", |file| Ok(fs::write(file, table(run))?))?;
    save(folder, "picture.svg", |file| picture(file, run))
}

pub fn write_growth(folder: &Path, run: &Run) -> Result<()> {
    save(folder, "growth.json", |file| Ok(fs::write(file, serde_json::to_string_pretty(run)?)?))?;
    save(folder, "growth.svg", |file| growth(file, run))
}

// --- The table -------------------------------------------------------------------------------------------------------------

/// Three digits, without an exponent.
fn short(number: f64) -> String {
    let digits = (2 - number.abs().log10().floor() as i32).clamp(0, 2) as usize;
    format!("{number:.digits$}")
}

fn table(run: &Run) -> String {
    let mut text = String::from("# Microseconds per call\n\n");
    text += &run.machine.iter().map(|line| format!("- {line}\n")).collect::<String>();
    let both = run
        .allocator
        .as_ref()
        .map(|name| format!(" Two numbers: with the system's allocator / with {name}."))
        .unwrap_or_default();
    text += &format!(
        "- medians of {} rounds; ratios are against fused{}, above 1 where fused is faster.{both}\n\n",
        run.rounds,
        if run.allocator.is_some() { " under its better allocator" } else { "" }
    );
    text += "Bound: `limit` for rows and matvec; the better of `gemm` (plain products also beside normalised cells) and `torch` for \
             matrix products.\n\n";
    let heads: Vec<&str> =
        run.engines.iter().map(String::as_str).chain(["best peer", "best peer / fused", "bound / fused"]).collect();
    text += &format!("| cell | pass | {} |\n|---|---|{}\n", heads.join(" | "), "---:|".repeat(heads.len()));
    let (mut ratios, mut lost) = (Vec::new(), Vec::new());
    for entry in &run.cases {
        for (what, pass) in PASSES {
            let numbers = run.engines.iter().map(|engine| {
                let each = run.measured(entry, engine).map(|measured| match measured.median(what) {
                    Some(us) => short(us),
                    None if measured.wrong.is_some() => "wrong".into(),
                    None => "–".into(),
                });
                each.collect::<Vec<_>>().join(" / ")
            });
            let (fused, peer) = (run.best(entry, "fused", what), run.best_peer(entry, what));
            let over = |time: Option<f64>| time.zip(fused).map(|(time, fused)| time / fused);
            let ratio = over(peer.map(|peer| peer.1));
            if let Some(ratio) = ratio {
                ratios.push(ratio);
                if ratio < 1.0 {
                    lost.push(format!(
                        "- {}, {pass}: {} against {}\n",
                        entry.case.title(),
                        short(ratio),
                        peer.map_or("", |p| p.0)
                    ));
                }
            }
            let cells: Vec<String> = numbers
                .chain([
                    peer.map_or("–".into(), |peer| peer.0.into()),
                    ratio.map_or("–".into(), |ratio| format!("**{}**", short(ratio))),
                    over(run.bound(entry, what)).map_or("–".into(), short),
                ])
                .collect();
            text += &format!("| {} | {pass} | {} |\n", entry.case.title(), cells.join(" | "));
        }
    }
    let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    if !ratios.is_empty() {
        text += &format!("\nGeometric mean of best peer / fused over {} rows: **{}**.\n", ratios.len(), short(mean));
        text += &format!("\nLost (ratio below 1): {}.\n\n{}", lost.len(), lost.concat());
    }
    text + &remarks(run)
}

/// Who gave wrong answers, and who did not do what.
fn remarks(run: &Run) -> String {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in &run.cases {
        for (engine, measured) in &entry.engines {
            if let Some(reason) = measured.wrong.as_ref().or(measured.skip.as_ref()) {
                reasons.entry(format!("{engine}: {reason}")).or_default().push(entry.case.title());
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
        format!("\nWrong (not timed) or not done:\n\n{}", lines.collect::<String>())
    }
}

// --- The pictures ----------------------------------------------------------------------------------------------------------

/// Dark enough on white, and apart from each other.
const COLOURS: [(&str, RGBColor); 11] = [
    ("fused", RGBColor(0x00, 0x00, 0x00)),
    ("composed", RGBColor(0x7f, 0x7f, 0x7f)),
    ("burn", RGBColor(0xd6, 0x5a, 0x0a)),
    ("candle", RGBColor(0xd4, 0xa0, 0x17)),
    ("ndarray", RGBColor(0x8c, 0x56, 0x4b)),
    ("torch", RGBColor(0xd6, 0x27, 0x28)),
    ("torch-compile", RGBColor(0xf0, 0x7f, 0xb5)),
    ("jax", RGBColor(0x1f, 0x6f, 0xc0)),
    ("keras-tf", RGBColor(0x7b, 0x3f, 0xb5)),
    ("limit", RGBColor(0x2c, 0xa0, 0x2c)),
    ("gemm", RGBColor(0x17, 0xa5, 0xb0)),
];

fn colour(engine: &str) -> RGBColor {
    COLOURS.iter().find(|(name, _)| *name == engine).map_or(BLACK, |(_, colour)| *colour)
}

/// One row of coloured names over the whole width.
fn legend(area: &DrawingArea<SVGBackend, plotters::coord::Shift>, engines: &[&String], at: (i32, i32)) -> Result<()> {
    let mut x = at.0;
    for engine in engines {
        area.draw(&Circle::new((x, at.1), 5, colour(engine).filled()))?;
        area.draw(&Text::new(engine.to_string(), (x + 10, at.1 - 7), ("sans-serif", 14)))?;
        x += 34 + 8 * engine.len() as i32;
    }
    Ok(())
}

const ROW: i32 = 24;
const LABELS: i32 = 190;
const PANEL: i32 = 560;
const TOP: i32 = 96;

/// A row for each case, a dot for each engine, a panel for each pass: the time over that of fused, on a log scale.
fn picture(file: &Path, run: &Run) -> Result<()> {
    let height = TOP + ROW * run.cases.len() as i32 + 50;
    let root = SVGBackend::new(file, ((LABELS + 2 * PANEL + 20) as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(
        "Time over that of fused: to the right of the line fused is faster",
        (LABELS, 12),
        ("sans-serif", 20),
    ))?;
    legend(&root, &run.engines.iter().filter(|engine| *engine != "fused").collect::<Vec<_>>(), (LABELS + 6, 52))?;
    let ratios = |entry: &Entry, what| -> Vec<(String, f64)> {
        let fused = run.best(entry, "fused", what);
        let others = run.engines.iter().filter(|engine| *engine != "fused");
        others.filter_map(|engine| Some((engine.clone(), run.best(entry, engine, what)? / fused?))).collect()
    };
    let all = run.cases.iter().flat_map(|entry| PASSES.iter().flat_map(|(what, _)| ratios(entry, *what)));
    let (low, high) = all.fold((0.5, 2.0), |(low, high): (f64, f64), (_, ratio)| (low.min(ratio), high.max(ratio)));
    let (low, high) = ((low * 0.8).ln(), (high * 1.25).ln());
    for (panel, (what, pass)) in PASSES.into_iter().enumerate() {
        let left = LABELS + panel as i32 * PANEL;
        let x = |ratio: f64| left + ((ratio.ln() - low) / (high - low) * f64::from(PANEL - 20)) as i32;
        let bottom = TOP + ROW * run.cases.len() as i32;
        root.draw(&Text::new(pass, (left, 68), ("sans-serif", 15).into_font().style(FontStyle::Bold)))?;
        let ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
        for tick in ticks.into_iter().filter(|tick| (low..high).contains(&f64::ln(*tick))) {
            let style = if tick == 1.0 { BLACK.stroke_width(2) } else { BLACK.mix(0.15).stroke_width(1) };
            root.draw(&PathElement::new([(x(tick), TOP - 6), (x(tick), bottom)], style))?;
            root.draw(&Text::new(
                tick.to_string(),
                (x(tick) - 4 * tick.to_string().len() as i32, bottom + 8),
                ("sans-serif", 13),
            ))?;
        }
        for (row, entry) in run.cases.iter().enumerate() {
            let y = TOP + ROW * row as i32 + ROW / 2;
            if panel == 0 {
                root.draw(&Text::new(entry.case.title(), (10, y - 7), ("sans-serif", 14)))?;
            }
            root.draw(&PathElement::new([(left, y), (left + PANEL - 20, y)], BLACK.mix(0.08)))?;
            for (engine, ratio) in ratios(entry, what) {
                root.draw(&Circle::new((x(ratio), y), 5, colour(&engine).mix(0.85).filled()))?;
            }
        }
    }
    Ok(root.present()?)
}

/// Nanoseconds per element of one input against the number of them, both on log scales.
fn growth(file: &Path, run: &Run) -> Result<()> {
    let root = SVGBackend::new(file, (1100, 860)).into_drawing_area();
    root.fill(&WHITE)?;
    legend(&root, &run.engines.iter().collect::<Vec<_>>(), (70, 22))?;
    let (_, charts) = root.split_vertically(40);
    for (panel, area) in charts.split_evenly((2, 2)).iter().enumerate() {
        let ((what, pass), normalize) = (PASSES[panel % 2], panel >= 2);
        let entries: Vec<&Entry> = run.cases.iter().filter(|entry| entry.case.normalize == normalize).collect();
        let points = |engine: &str| -> Vec<(f64, f64)> {
            let point = |entry: &&Entry| {
                let elements = entry.case.lhs.iter().product::<usize>() as f64;
                Some((elements, 1000.0 * run.best(entry, engine, what)? / elements))
            };
            entries.iter().filter_map(point).collect()
        };
        let costs: Vec<f64> = run.engines.iter().flat_map(|engine| points(engine)).map(|point| point.1).collect();
        let (low, high) = costs.iter().fold((1.0, 1.0), |(low, high): (f64, f64), cost| (low.min(*cost), high.max(*cost)));
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{}, {pass}", if normalize { "cosine" } else { "dot" }), ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(56)
            .build_cartesian_2d((1e3..2e7).log_scale(), (low * 0.7..high * 1.4).log_scale())?;
        let mesh = &mut chart.configure_mesh();
        let power = |x: &f64| format!("10^{}", x.log10().round());
        mesh.x_desc("elements").y_desc("ns per element").x_label_formatter(&power).y_label_formatter(&|y| y.to_string());
        mesh.light_line_style(WHITE).draw()?;
        for engine in &run.engines {
            let line = colour(engine);
            chart.draw_series(LineSeries::new(points(engine), line.stroke_width(2)))?;
            chart.draw_series(points(engine).into_iter().map(|point| Circle::new(point, 3, line.filled())))?;
        }
    }
    Ok(root.present()?)
}

//! The pictures of a report, drawn from the results alone, under the first allocator.

use std::path::Path;

use anyhow::Result;
use plotters::{coord::Shift, prelude::*};

use crate::{
    process::{GEMM, MEMORY, OURS},
    results::{Entry, Run},
    worker::Pass,
};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Dark enough on white, and apart from each other.
const COLOURS: [(&str, RGBColor); 12] = [
    (OURS, RGBColor(0x00, 0x00, 0x00)),
    ("composed", RGBColor(0x7f, 0x7f, 0x7f)),
    ("burn", RGBColor(0xd6, 0x5a, 0x0a)),
    ("candle", RGBColor(0xd4, 0xa0, 0x17)),
    ("ndarray", RGBColor(0x8c, 0x56, 0x4b)),
    (GEMM, RGBColor(0x17, 0xa5, 0xb0)),
    (MEMORY, RGBColor(0x5a, 0x5a, 0xa8)),
    ("torch", RGBColor(0xd6, 0x27, 0x28)),
    ("torch-compile", RGBColor(0xf0, 0x7f, 0xb5)),
    ("torch-autotune", RGBColor(0x2c, 0xa0, 0x2c)),
    ("jax", RGBColor(0x1f, 0x6f, 0xc0)),
    ("keras-tf", RGBColor(0x7b, 0x3f, 0xb5)),
];

fn colour(engine: &str) -> RGBColor {
    COLOURS.iter().find(|(name, _)| *name == engine).map_or(BLACK, |(_, colour)| *colour)
}

/// The median time under the first allocator.
fn time(run: &Run, entry: &Entry, engine: &str, pass: Pass) -> Option<f64> {
    entry.of(engine, run.allocators.first()?)?.median(pass)
}

/// The engines other than ours, with their time over that of ours.
fn ratios<'a>(run: &'a Run, entry: &Entry, pass: Pass) -> Vec<(&'a str, f64)> {
    let ours = time(run, entry, OURS, pass);
    let others = run.engines.iter().filter(|engine| *engine != OURS);
    others.filter_map(|engine| Some((&engine[..], time(run, entry, engine, pass)? / ours?))).collect()
}

/// One row of coloured names over the whole width.
fn legend<'a>(area: &Area, engines: impl Iterator<Item = &'a String>, at: (i32, i32)) -> Result<()> {
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

/// A row for each case, a dot for each engine, a panel for each pass: the time over that of ours, on a log scale.
pub fn ratios_by_cell(file: &Path, run: &Run) -> Result<()> {
    let bottom = TOP + ROW * run.cases.len() as i32;
    let root = SVGBackend::new(file, ((LABELS + 2 * PANEL + 20) as u32, (bottom + 50) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Time over that of {OURS}: to the right of the line {OURS} is faster");
    root.draw(&Text::new(title, (LABELS, 12), ("sans-serif", 20)))?;
    legend(&root, run.engines.iter().filter(|engine| *engine != OURS), (LABELS + 6, 52))?;
    for (row, entry) in run.cases.iter().enumerate() {
        root.draw(&Text::new(entry.case.title(), (10, TOP + ROW * row as i32 + ROW / 2 - 7), ("sans-serif", 14)))?;
    }
    let all = run.cases.iter().flat_map(|entry| Pass::ALL.into_iter().flat_map(move |pass| ratios(run, entry, pass)));
    let (low, high) = all.fold((0.5, 2.0), |(low, high): (f64, f64), (_, ratio)| (low.min(ratio), high.max(ratio)));
    let range = ((low * 0.8).ln(), (high * 1.25).ln());
    for (panel, pass) in Pass::ALL.into_iter().enumerate() {
        draw_panel(&root, run, pass, LABELS + panel as i32 * PANEL, range)?;
    }
    Ok(root.present()?)
}

fn draw_panel(root: &Area, run: &Run, pass: Pass, left: i32, (low, high): (f64, f64)) -> Result<()> {
    let x = |ratio: f64| left + ((ratio.ln() - low) / (high - low) * f64::from(PANEL - 20)) as i32;
    let bottom = TOP + ROW * run.cases.len() as i32;
    root.draw(&Text::new(pass.name(), (left, 68), ("sans-serif", 15).into_font().style(FontStyle::Bold)))?;
    let ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
    for tick in ticks.into_iter().filter(|tick| (low..high).contains(&f64::ln(*tick))) {
        let style = if tick == 1.0 { BLACK.stroke_width(2) } else { BLACK.mix(0.15).stroke_width(1) };
        root.draw(&PathElement::new([(x(tick), TOP - 6), (x(tick), bottom)], style))?;
        let label = tick.to_string();
        let middle = x(tick) - 4 * label.len() as i32;
        root.draw(&Text::new(label, (middle, bottom + 8), ("sans-serif", 13)))?;
    }
    for (row, entry) in run.cases.iter().enumerate() {
        let y = TOP + ROW * row as i32 + ROW / 2;
        root.draw(&PathElement::new([(left, y), (left + PANEL - 20, y)], BLACK.mix(0.08)))?;
        for (engine, ratio) in ratios(run, entry, pass) {
            root.draw(&Circle::new((x(ratio), y), 5, colour(engine).mix(0.85).filled()))?;
        }
    }
    Ok(())
}

/// Nanoseconds per element of one input against the number of them, both on log scales.
pub fn growth(file: &Path, run: &Run) -> Result<()> {
    let root = SVGBackend::new(file, (1100, 860)).into_drawing_area();
    root.fill(&WHITE)?;
    legend(&root, run.engines.iter(), (70, 22))?;
    let (_, charts) = root.split_vertically(40);
    for (panel, area) in charts.split_evenly((2, 2)).iter().enumerate() {
        draw_growth(area, run, Pass::ALL[panel % 2], panel >= 2)?;
    }
    Ok(root.present()?)
}

fn draw_growth(area: &Area, run: &Run, pass: Pass, normalize: bool) -> Result<()> {
    let entries: Vec<&Entry> = run.cases.iter().filter(|entry| entry.case.normalize == normalize).collect();
    let points = |engine: &str| -> Vec<(f64, f64)> {
        let point = |entry: &&Entry| {
            let elements = entry.case.lhs.iter().product::<usize>() as f64;
            Some((elements, 1000.0 * time(run, entry, engine, pass)? / elements))
        };
        entries.iter().filter_map(point).collect()
    };
    let costs: Vec<f64> = run.engines.iter().flat_map(|engine| points(engine)).map(|point| point.1).collect();
    let (low, high) = costs.iter().fold((1.0, 1.0), |(low, high): (f64, f64), cost| (low.min(*cost), high.max(*cost)));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}, {}", if normalize { "cosine" } else { "dot" }, pass.name()), ("sans-serif", 17))
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
    Ok(())
}

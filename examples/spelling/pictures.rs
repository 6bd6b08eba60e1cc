//! Pictures: recall over training, and a map of words among their misspellings.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use crate::{baselines::Recall, common, train::Epoch};

const BLUE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const GREEN: RGBColor = RGBColor(0x2e, 0x8b, 0x57);
const GREY: RGBColor = RGBColor(0x80, 0x80, 0x80);
const COLOURS: [RGBColor; 6] = [
    BLUE,
    GREEN,
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0x8e, 0x44, 0xad),
    RGBColor(0xd3, 0x7b, 0x0b),
    RGBColor(0x34, 0x49, 0x5e),
];

pub fn draw_curve(file: &Path, curve: &[Epoch], baselines: &[(&str, Recall)]) -> Result<()> {
    let root = SVGBackend::new(file, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let last = curve.len().max(2);
    let least =
        curve.iter().map(|epoch| epoch.recall_1).chain(baselines.iter().map(|baseline| baseline.1[0])).fold(1.0, f64::min);
    let mut chart = ChartBuilder::on(&root)
        .caption("Misspellings of words never trained on", ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(1..last, (least - 0.02)..1.0)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("epoch").y_desc("recall, of all words").draw()?;
    let points =
        |value: fn(&Epoch) -> f64| curve.iter().enumerate().map(|(i, epoch)| (i + 1, value(epoch))).collect::<Vec<_>>();
    let mut lines = vec![
        ("recall@1".to_owned(), BLUE, points(|epoch| epoch.recall_1)),
        ("recall@10".to_owned(), GREEN, points(|epoch| epoch.recall_10)),
    ];
    for (name, [at_1, at_10]) in baselines {
        lines.push((format!("{name} @1"), GREY, vec![(1, *at_1), (last, *at_1)]));
        lines.push((format!("{name} @10"), GREY, vec![(1, *at_10), (last, *at_10)]));
    }
    for (name, colour, points) in lines {
        let end = *points.last().unwrap_or(&(1, 0.0));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let style = ("sans-serif", 11).into_font().color(&colour);
        let left = -6 * name.len() as i32;
        chart.draw_series([EmptyElement::at(end) + Text::new(name, (left, -13), style)])?;
    }
    Ok(root.present()?)
}

/// A word or a misspelling on the map.
pub struct Place {
    pub text: String,
    pub at: [f32; 2],
    /// Of which word, by number.
    pub group: usize,
    pub correct: bool,
}

pub fn draw_map(file: &Path, places: &[Place]) -> Result<()> {
    let root = SVGBackend::new(file, (1000, 800)).into_drawing_area();
    root.fill(&WHITE)?;
    let at: Vec<[f32; 2]> = places.iter().map(|place| place.at).collect();
    let mut chart = common::map(&root, "Held-out words among their misspellings", &at)?;
    let mut named: Vec<(i32, i32)> = Vec::new();
    // Words first: where two names would collide the first stays.
    for correct in [true, false] {
        for place in places.iter().filter(|place| place.correct == correct) {
            let (at, colour) = ((place.at[0], place.at[1]), COLOURS[place.group % COLOURS.len()]);
            let (size, font) = if correct { (6, 16) } else { (3, 10) };
            chart.draw_series([Circle::new(at, size, colour.mix(if correct { 1.0 } else { 0.5 }).filled())])?;
            let pixel = chart.backend_coord(&at);
            if correct || named.iter().all(|&(x, y)| (pixel.0 - x).abs() > 80 || (pixel.1 - y).abs() > 12) {
                named.push(pixel);
                let style = ("sans-serif", font).into_font().color(&colour);
                chart.draw_series([EmptyElement::at(at) + Text::new(place.text.clone(), (8, -5), style)])?;
            }
        }
    }
    Ok(root.present()?)
}

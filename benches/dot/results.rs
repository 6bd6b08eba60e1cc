//! What a run found: all times of all engines, as committed in `benches/results`, and what follows from them.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    cells::{Case, Kind},
    machine::Machine,
    process::{GEMM, MEMORY, OURS, YARDSTICKS},
    worker::Pass,
};

/// Everything that a run found.
#[derive(Serialize, Deserialize)]
pub struct Run {
    pub machine: Machine,
    /// The system's first.
    pub allocators: Vec<String>,
    pub engines: Vec<String>,
    pub cases: Vec<Entry>,
}

/// One case, and what each engine did with it.
#[derive(Serialize, Deserialize)]
pub struct Entry {
    pub case: Case,
    pub measured: Vec<Measured>,
}

/// What one engine did with one case under one allocator.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    pub engine: String,
    pub allocator: String,
    /// Why it was not run.
    pub skip: Option<String>,
    /// Why it was not timed.
    pub wrong: Option<String>,
    /// Which way of writing the product it chose.
    pub note: Option<String>,
    /// The output alone is one pass, with gradients it is two.
    pub passes: usize,
    /// Microseconds per call, by rounds.
    pub forward: Vec<f64>,
    pub backward: Vec<f64>,
}

impl Measured {
    pub fn new(engine: &str, allocator: &str) -> Self {
        let (engine, allocator) = (engine.into(), allocator.into());
        Measured { engine, allocator, skip: None, wrong: None, note: None, passes: 0, forward: vec![], backward: vec![] }
    }

    pub fn can(&self, pass: Pass) -> bool {
        self.wrong.is_none() && self.passes >= if pass == Pass::Forward { 1 } else { 2 }
    }

    pub fn times(&self, pass: Pass) -> &[f64] {
        if pass == Pass::Forward { &self.forward } else { &self.backward }
    }

    pub fn times_mut(&mut self, pass: Pass) -> &mut Vec<f64> {
        if pass == Pass::Forward { &mut self.forward } else { &mut self.backward }
    }

    pub fn median(&self, pass: Pass) -> Option<f64> {
        let mut times = self.times(pass).to_vec();
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1)?;
        Some((times[last / 2] + times[last.div_ceil(2)]) / 2.0)
    }
}

impl Entry {
    pub fn of(&self, engine: &str, allocator: &str) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.engine == engine && measured.allocator == allocator)
    }
}

/// One pass of one case under one allocator: a row of the table.
pub struct Row<'a> {
    pub entry: &'a Entry,
    pub pass: Pass,
    pub ours: Option<f64>,
    /// The fastest engine other than ours, and its time.
    pub best: Option<(&'a str, f64)>,
    /// In how many rounds ours was the faster of the two.
    pub ahead: usize,
    /// The time to move its bytes, where it waits for memory; on a device to move them or to multiply, whichever takes longer.
    pub yardstick: Option<f64>,
    /// The time of the product alone, by the gemm crate.
    pub gemm: Option<f64>,
}

impl Row<'_> {
    /// Above 1 where ours is faster.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.best?.1 / self.ours?)
    }

    /// Whether ours was to be timed, and was not, though others were.
    pub fn has_failed(&self) -> bool {
        self.ours.is_none() && self.best.is_some() && self.entry.measured.iter().any(|measured| measured.engine == OURS)
    }

    pub fn title(&self) -> String {
        format!("{}, {}", self.entry.case.title(), self.pass.name())
    }
}

impl Run {
    /// All but ours and the yardsticks.
    pub fn others(&self) -> impl Iterator<Item = &String> {
        self.engines.iter().filter(|engine| *engine != OURS && !YARDSTICKS.contains(&&engine[..]))
    }

    pub fn rows<'a>(&'a self, allocator: &'a str) -> impl Iterator<Item = Row<'a>> {
        let passes = self.cases.iter().flat_map(|entry| Pass::ALL.map(|pass| (entry, pass)));
        passes.map(move |(entry, pass)| self.row(entry, pass, allocator))
    }

    fn row<'a>(&'a self, entry: &'a Entry, pass: Pass, allocator: &str) -> Row<'a> {
        let median = |engine: &str| entry.of(engine, allocator)?.median(pass);
        let others = entry.measured.iter().filter(|other| other.allocator == allocator);
        let others = others.filter(|other| other.engine != OURS && !YARDSTICKS.contains(&&other.engine[..]));
        let best = others.filter_map(|other| Some((&other.engine[..], other.median(pass)?))).min_by(|a, b| a.1.total_cmp(&b.1));
        let times = |engine: &str| entry.of(engine, allocator).map_or(&[][..], |measured| measured.times(pass));
        let pairs = times(OURS).iter().zip(best.map_or(&[][..], |(engine, _)| times(engine)));
        let ahead = pairs.filter(|(ours, other)| ours < other).count();
        let yardstick = match &self.machine.device {
            Some(device) => device.least_us(&entry.case, pass),
            None => median(MEMORY),
        };
        let gemm = (entry.case.kind == Kind::Matmul).then(|| median(GEMM)).flatten();
        Row { entry, pass, ours: median(OURS), best, ahead, yardstick, gemm }
    }

    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not of this version of the bench", file.display()))
    }

    /// JSON with a line for each engine, so that a difference between two runs can be read.
    pub fn json(&self) -> Result<String> {
        let mut text = format!("{{\"machine\":{},\n", serde_json::to_string(&self.machine)?);
        text += &format!("\"allocators\":{},\n", serde_json::to_string(&self.allocators)?);
        text += &format!("\"engines\":{},\n\"cases\":[", serde_json::to_string(&self.engines)?);
        for (i, entry) in self.cases.iter().enumerate() {
            let lines = entry.measured.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            text += if i == 0 { "\n" } else { ",\n" };
            text += &format!("{{\"case\":{},\"measured\":[\n{}]}}", serde_json::to_string(&entry.case)?, lines.join(",\n"));
        }
        Ok(text + "\n]}\n")
    }
}

//! The bench as a test: two small cells, right answers, and no kernel much slower than it is known to be beside Burn's operations.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    cells,
    measure::measure,
    process::{Launch, OURS, SYSTEM},
    results::Entry,
    worker::Pass,
};

const ROUNDS: u32 = 11;
/// A kernel that lost an `#[inline(always)]`, and with it its vector instructions, is slower by more; a busy machine by less.
const SLACK: f64 = 3.0;

/// The time of fused over that of the faster of composed and burn, forward and forward+backward, for each case in turn, as measured by
/// the command of `.ci/run`, for which `burn-flex` and `burn-dispatch` are not optimized; by AVX-512, on two cores of an Intel Xeon.
const EXPECTED: [[f64; 2]; 8] =
    [[0.009, 0.018], [0.0035, 0.006], [0.003, 0.005], [0.002, 0.0025], [0.3, 0.27], [0.035, 0.1], [0.25, 0.33], [0.015, 0.05]];

pub fn run(launch: &Launch, folder: &Path) -> Result<()> {
    ensure!(cfg!(debug_assertions), "--smoke expects the times of the dev profile: benches/README.md has its command");
    let engines = [OURS, "composed", "burn"];
    let mut workers = engines.iter().map(|engine| launch.engine(engine, None, folder)).collect::<Result<Vec<_>>>()?;
    let mut faults = Vec::new();
    println!("{:<28} {:<18} {:>9} {:>9}", "case", "pass", "ratio", "expected");
    for (case, expected) in cells::smoke_cases().into_iter().zip(EXPECTED) {
        let entry = measure(case, &mut workers, folder, ROUNDS)?;
        let title = entry.case.title();
        for measured in &entry.measured {
            let reason = measured.wrong.as_ref().or(measured.skip.as_ref());
            faults.extend(reason.map(|reason| format!("{title}: {} is {reason}", measured.engine)));
        }
        for (pass, expected) in Pass::ALL.into_iter().zip(expected) {
            let ratio = ratio(&entry, pass);
            println!("{title:<28} {:<18} {ratio:>9.3} {expected:>9.3}", pass.name());
            if ratio > SLACK * expected {
                faults
                    .push(format!("{title}, {}: {OURS} takes {ratio:.3} of Burn's time, {expected:.3} expected", pass.name()));
            }
        }
    }
    ensure!(faults.is_empty(), "\n{}", faults.join("\n"));
    Ok(())
}

/// By the fastest rounds: other programs only add to a time. Infinite where there is nothing to compare.
fn ratio(entry: &Entry, pass: Pass) -> f64 {
    let least = |engine: &str| entry.of(engine, SYSTEM)?.times(pass).iter().copied().reduce(f64::min);
    let ratio = || Some(least(OURS)? / least("composed")?.min(least("burn")?));
    ratio().unwrap_or(f64::INFINITY)
}

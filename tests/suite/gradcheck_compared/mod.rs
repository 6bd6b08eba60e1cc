//! The rows of the README's comparison for burn-gradcheck and for the crate `gradcheck`: the cases of
//! `crates/burn-gradcheck/comparison/compare.py`, under the same names. `compare.py rust` writes what is found; here it must still be found.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn_gradcheck::{Failure, GradCheck, Report};
use serde::{Deserialize, Serialize};

use crate::device::turn_to_draw;

mod adapter;
mod cases;

use adapter::by_crate;

/// What a checker says of a case.
#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Row {
    verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    names: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Engine {
    engine: String,
    version: String,
    how: String,
    rows: BTreeMap<String, Row>,
}

/// The number that is wrong: an input, and its flat index where it is one.
type Place = (usize, Option<usize>);

/// Both checkers' rows.
#[derive(Default)]
struct Table {
    ours: BTreeMap<String, Row>,
    theirs: BTreeMap<String, Row>,
}

const NOT_THERE: &str = "not there";

fn said(text: &str) -> Option<String> {
    Some(text.chars().take(600).collect())
}

/// The verdict on a fault, from what is said of it and of the same with its right backward pass.
fn fault_row(wrong: Option<String>, right: Option<String>, names: impl FnOnce(&str) -> String) -> Row {
    let verdict = match (&wrong, right) {
        (None, _) => "missed",
        (Some(_), Some(_)) => "either way",
        (Some(_), None) => "caught",
    };
    let names = wrong.as_deref().filter(|_| verdict == "caught").map(names);
    Row { verdict: verdict.into(), names, said: wrong.as_deref().and_then(said) }
}

fn right_row(complaint: Option<String>) -> Row {
    let verdict = if complaint.is_some() { "false alarm" } else { "passed" };
    Row { verdict: verdict.into(), names: None, said: complaint.as_deref().and_then(said) }
}

fn complaint(report: &Report) -> Option<String> {
    (!report.is_ok()).then(|| report.to_string())
}

/// Whether a report names a wrong number, its input only, or nothing. `inputs` are names and shapes.
fn names(report: &Report, (input, place): Place) -> String {
    let row = &report.rows[input];
    let flat = |index: &[usize]| index.iter().zip(&row.shape).fold(0, |flat, (i, size)| flat * size + i);
    let mut best = "nothing";
    for failure in &report.failures {
        match failure {
            Failure::Mismatch { input, index, .. }
            | Failure::NotFinite { input, index, .. }
            | Failure::Precision { input, index, .. }
            | Failure::ZeroCotangent { input, index, .. }
            | Failure::NotLinear { input, index, .. }
            | Failure::Nondeterministic { input, index, .. }
            | Failure::Layout { input, index, .. }
                if *input == row.name && place.is_none_or(|place| place == flat(index)) =>
            {
                return "element".into();
            }
            Failure::Pattern { input, .. } | Failure::Detached { input, .. } if *input == row.name => best = "input",
            _ => {}
        }
    }
    best.into()
}

/// Whether the crate `gradcheck` names the wrong number; it has one input.
fn crate_names(said: &str, place: Place) -> String {
    let named = said.split_once(" at[").and_then(|(_, rest)| rest.split_once(']')).and_then(|(at, _)| at.parse::<usize>().ok());
    let is_named = named.is_some_and(|named| place.1.is_none_or(|place| place == named));
    if is_named { "element" } else { "input" }.into()
}

impl Table {
    fn fault<const D: usize, const O: usize>(
        &mut self,
        name: &str,
        x: Tensor<D>,
        place: Option<usize>,
        wrong: impl Fn(Tensor<D>) -> Tensor<O>,
        right: impl Fn(Tensor<D>) -> Tensor<O>,
    ) {
        let check = GradCheck::new(&Device::flex());
        let report = check.check(&wrong, x.clone());
        let of_right = complaint(&check.check(&right, x.clone()));
        self.ours.insert(name.into(), fault_row(complaint(&report), of_right, |_| names(&report, (0, place))));
        let theirs = match (by_crate(&x, &wrong), by_crate(&x, &right)) {
            (Some(wrong), Some(right)) => fault_row(wrong, right, |said| crate_names(said, (0, place))),
            _ => Row { verdict: NOT_THERE.into(), names: None, said: None },
        };
        self.theirs.insert(name.into(), theirs);
    }

    /// A fault of two inputs. The crate `gradcheck` has one, and is asked about the one that is wrong, then about the other.
    fn fault_of_two<const D: usize>(
        &mut self,
        name: &str,
        (x, y): (Tensor<D>, Tensor<D>),
        input: usize,
        wrong: impl Fn(Tensor<D>, Tensor<D>) -> Tensor<D>,
        right: impl Fn(Tensor<D>, Tensor<D>) -> Tensor<D>,
    ) {
        let check = GradCheck::new(&Device::flex());
        let report = check.check(|(x, y)| wrong(x, y), (x.clone(), y.clone()));
        let of_right = complaint(&check.check(|(x, y)| right(x, y), (x.clone(), y.clone())));
        self.ours.insert(name.into(), fault_row(complaint(&report), of_right, |_| names(&report, (input, None))));
        let other = |z: &Tensor<D>| Tensor::<D>::from_data(z.to_data(), (&Device::flex().autodiff(), z.dtype()));
        let asked = |f: &dyn Fn(Tensor<D>, Tensor<D>) -> Tensor<D>| {
            let of_x = by_crate(&x, |x| f(x, other(&y))).flatten();
            let of_y = by_crate(&y, |y| f(other(&x), y)).flatten();
            if input == 0 { of_x.or(of_y) } else { of_y.or(of_x) }
        };
        self.theirs.insert(name.into(), fault_row(asked(&wrong), asked(&right), |said| crate_names(said, (input, None))));
    }

    fn right<const D: usize, const O: usize>(&mut self, name: &str, x: Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<O>) {
        self.ours.insert(name.into(), right_row(complaint(&GradCheck::new(&Device::flex()).check(&f, x.clone()))));
        let theirs = match by_crate(&x, &f) {
            Some(complaint) => right_row(complaint),
            None => Row { verdict: NOT_THERE.into(), names: None, said: None },
        };
        self.theirs.insert(name.into(), theirs);
    }

    fn not_there(&mut self, name: &str) {
        for rows in [&mut self.ours, &mut self.theirs] {
            rows.insert(name.into(), Row { verdict: NOT_THERE.into(), names: None, said: None });
        }
    }
}

const OURS: &str = include_str!("../../../crates/burn-gradcheck/comparison/results/burn-gradcheck.json");
const THEIRS: &str = include_str!("../../../crates/burn-gradcheck/comparison/results/gradcheck.json");

#[test]
fn the_table_of_the_readme_says_what_both_crates_find() {
    let _turn = turn_to_draw();
    let mut t = Table::default();
    cases::faults(&mut t);
    cases::right_but_hard(&mut t);
    let engines = [
        ("burn-gradcheck", "`check(f, inputs)` or `check_module`", t.ours, OURS),
        ("gradcheck", "`gradcheck(…).assert_pass()` with `f64_defaults`, on an adapter for f64", t.theirs, THEIRS),
    ];
    for (name, how, rows, committed) in engines {
        if let Ok(folder) = std::env::var("BURN_GRADCHECK_ROWS") {
            let locked = include_str!("../../../Cargo.lock").split(&format!("name = \"{name}\"\nversion = \"")).nth(1);
            let version = locked.and_then(|rest| rest.split('"').next()).expect("a version in Cargo.lock").into();
            let engine = Engine { engine: name.into(), version, how: how.into(), rows };
            let file = std::path::Path::new(&folder).join(format!("{name}.json"));
            std::fs::write(file, serde_json::to_string(&engine).unwrap()).unwrap();
            continue;
        }
        let committed: Engine = serde_json::from_str(committed).expect("rows that compare.py wrote");
        let short = |rows: &BTreeMap<String, Row>| -> Vec<_> {
            rows.iter().map(|(name, row)| (name.clone(), row.verdict.clone(), row.names.clone())).collect()
        };
        assert_eq!(short(&rows), short(&committed.rows), "{name}: run comparison/compare.py rust table");
    }
}

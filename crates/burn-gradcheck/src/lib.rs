#![doc = include_str!("../README.md")]

mod check;
mod comparison;
mod formula;
mod function;
mod hint;
mod laws;
mod numbers;
mod numeric;
mod precision;
mod report;
mod resolution;
mod step;
mod subject;

pub use check::{GradCheck, self_test};
pub use report::{Failure, GradCheckError, GradientKind, Hint, Precision, Report, Row};
pub use step::Step;
pub use subject::{Input, Inputs, Outputs};

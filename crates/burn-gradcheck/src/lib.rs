#![doc = include_str!("../README.md")]

mod check;
mod formula;
mod hint;
mod laws;
mod numeric;
mod precision;
mod report;
mod subject;

pub use check::{GradCheck, self_test};
pub use report::{Failure, GradCheckError, GradientKind, Hint, Precision, Report, Row};
pub use subject::{Input, Inputs, Outputs};

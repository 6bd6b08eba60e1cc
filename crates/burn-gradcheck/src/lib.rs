#![doc = include_str!("../README.md")]

mod check;
mod numeric;
mod report;
mod subject;

pub use check::{GradCheck, self_test};
pub use report::{Failure, GradCheckError, GradientKind, Hint, Precision, Report, Row};
pub use subject::{Input, Inputs, Outputs};

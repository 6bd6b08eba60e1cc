//! What a check found: a value to assert on, and a message to act on.

use core::fmt;

use burn_core::tensor::DType;

use crate::failure::Failure;

/// The outcome of a check. It prints as a table, followed by everything that is wrong.
#[derive(Clone, Debug)]
#[must_use = "a report says nothing until it is asked; call assert_ok() or into_result()"]
pub struct Report {
    /// The dtype in which the backward pass was compared with finite differences.
    pub dtype: DType,
    /// One row for each float input or parameter.
    pub rows: Vec<Row>,
    /// The lower dtypes that were compared with [`dtype`](Self::dtype).
    pub precision: Vec<Precision>,
    /// Everything that is wrong, in the order found. Empty when the gradients are right.
    pub failures: Vec<Failure>,
    /// What could not be checked, and what a reader should know.
    pub notes: Vec<String>,
}

/// What was seen of a lower dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// The dtype.
    pub dtype: DType,
    /// The largest difference from the higher dtype, as a part of what rounding explains.
    pub worst: f64,
}

/// What was seen of one input or parameter.
#[derive(Clone, Debug)]
pub struct Row {
    /// `input 0`, or the path of a parameter, such as `linear.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How many numbers were compared one by one; for a large input those looked at after a failure.
    pub elements: usize,
    /// How many random directions were compared, for a large input.
    pub directions: usize,
    /// How many numbers lie on a kink, where no derivative exists.
    pub kinks: usize,
    /// How many numbers cannot be judged: too small for the differences to tell from zero, or too near an edge, a pole or a jump. A
    /// note tells why.
    pub unknown: usize,
    /// The largest `|analytic − numeric|` relative to the larger of both, among those compared.
    pub worst: f64,
    /// Whether a gradient arrived, and what it says.
    pub gradient: GradientKind,
}

/// Whether a gradient arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientKind {
    /// Some number of it is not zero.
    Present,
    /// It is zero everywhere, or within the rounding of the largest gradient, and no difference says otherwise; a note tells what is
    /// known.
    Zero,
    /// None arrived, and the function does not change with the input.
    Unused,
    /// None arrived, but the function changes with the input: a failure.
    Detached,
}

impl fmt::Display for GradientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Present => "present",
            Self::Zero => "zero",
            Self::Unused => "unused",
            Self::Detached => "detached",
        })
    }
}

/// How many failures are printed.
const SHOWN: usize = 12;

/// Failures, some of them, and all notes, a line each.
pub(crate) fn write_findings(f: &mut fmt::Formatter<'_>, failures: &[Failure], notes: &[String]) -> fmt::Result {
    for failure in failures.iter().take(SHOWN) {
        writeln!(f, "  ✗ {failure}")?;
    }
    if failures.len() > SHOWN {
        writeln!(f, "  … and {} more", failures.len() - SHOWN)?;
    }
    notes.iter().try_for_each(|note| writeln!(f, "  · {note}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        writeln!(f, "gradient check: {verdict} (differences in {:?})", self.dtype)?;
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:width$}  {:>16}  {:>8}  {:>10}  {:>5}  {:>7}  {:>9}  gradient",
            "input", "shape", "elements", "directions", "kinks", "unknown", "worst"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:width$}  {:>16}  {:>8}  {:>10}  {:>5}  {:>7}  {:>9.1e}  {}",
                row.name,
                format!("{:?}", row.shape),
                row.elements,
                row.directions,
                row.kinks,
                row.unknown,
                row.worst,
                row.gradient
            )?;
        }
        for precision in &self.precision {
            writeln!(f, "precision of {:?}: {:.0} % of what rounding explains", precision.dtype, 100.0 * precision.worst)?;
        }
        write_findings(f, &self.failures, &self.notes)
    }
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }

    /// Panics with the whole report at the caller's line when something is wrong.
    ///
    /// # Panics
    ///
    /// When there is a failure.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert!(self.is_ok(), "{self}");
    }

    /// The report as a result, for `?`.
    ///
    /// # Errors
    ///
    /// The report itself, when there is a failure.
    pub fn into_result(self) -> Result<Report, GradCheckError> {
        if self.is_ok() { Ok(self) } else { Err(GradCheckError(Box::new(self))) }
    }
}

/// A report with failures, as an error.
#[derive(Clone, Debug)]
pub struct GradCheckError(pub Box<Report>);

impl fmt::Display for GradCheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for GradCheckError {}

//! Blocks of matrices, copied before they are multiplied: converted, scaled, or brought together from several parts.

use super::{
    kernel::{Element, Real},
    level::{self, Level, Task},
    runs::Run,
};

/// A matrix in memory: sizes and steps.
pub(super) struct View<T> {
    pub at: *const T,
    pub rows: (usize, isize),
    pub columns: (usize, isize),
}

/// Numbers at equal steps, signed as a [`Scale`](super::norms::Scale) is: only their size is a factor.
pub(super) type Factors<R> = (*const R, isize);

impl<T: Element> View<T> {
    /// The same memory, of a dtype that is its own real one.
    pub fn cast(self) -> View<T::Real> {
        View { at: self.at.cast(), rows: self.rows, columns: self.columns }
    }

    /// Copies the matrix, converted.
    ///
    /// # Safety
    ///
    /// The matrix lies within one allocation.
    pub unsafe fn copy(self, to: &mut [T::Real]) -> View<T::Real> {
        let mut block = Block::new(to, (self.rows.0, self.columns.0), (self.rows.1, self.columns.1));
        // SAFETY: the caller's promise.
        unsafe { block.copy(self, (0, 0), None) };
        block.view()
    }
}

/// A copy of a matrix, brought together from one part or several.
pub(super) struct Block<'a, R> {
    numbers: &'a mut [R],
    rows: usize,
    columns: usize,
    /// Whether the numbers of a column, not those of a row, lie side by side: as in the original, which is so read in order.
    by_columns: bool,
}

impl<'a, R: Real> Block<'a, R> {
    /// For a matrix of these sizes with these steps.
    pub fn new(numbers: &'a mut [R], (rows, columns): (usize, usize), steps: (isize, isize)) -> Self {
        Block { numbers, rows, columns, by_columns: steps.0 == 1 && steps.1 != 1 }
    }

    /// Copies a part to the place where its first row and column belong, each row multiplied by its factor.
    ///
    /// # Safety
    ///
    /// The part lies within one allocation, and there is a factor for each row.
    pub unsafe fn copy<T: Element<Real = R>>(
        &mut self,
        part: View<T>,
        (row, column): (usize, usize),
        scales: Option<Factors<R>>,
    ) {
        let View { at, rows, columns } = part;
        if self.by_columns {
            let to = &mut self.numbers[column * self.rows + row..];
            let scales = scales.map_or(Scales::None, Scales::Within);
            level::vectorized(CopyLines { at, lines: columns, len: rows.0, step: rows.1, to, width: self.rows, scales });
        } else {
            let to = &mut self.numbers[row * self.columns + column..];
            let scales = scales.map_or(Scales::None, Scales::OfLines);
            level::vectorized(CopyLines { at, lines: rows, len: columns.0, step: columns.1, to, width: self.columns, scales });
        }
    }

    pub fn view(self) -> View<R> {
        let (row_step, column_step) = if self.by_columns { (1, self.rows) } else { (self.columns, 1) };
        View { at: self.numbers.as_ptr(), rows: (self.rows, row_step as isize), columns: (self.columns, column_step as isize) }
    }
}

/// Lines of a matrix, to be copied side by side.
struct CopyLines<'a, T: Element> {
    at: *const T,
    lines: (usize, isize),
    len: usize,
    step: isize,
    /// The first line of the copy; the next ones follow, each so many numbers after the one before.
    to: &'a mut [T::Real],
    width: usize,
    scales: Scales<T::Real>,
}

/// Factors of lines, each of a whole line, or of the numbers within every line.
enum Scales<R> {
    None,
    OfLines(Factors<R>),
    Within(Factors<R>),
}

impl<T: Element> Task for CopyLines<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, level: S) {
        let CopyLines { at, lines, len, step, to, width, scales } = self;
        for i in 0..lines.0 {
            let to = &mut to[i * width..][..len];
            let i = i as isize;
            // SAFETY: the promise made to `Block::copy`, here and below.
            unsafe { copy(level, Run { at: at.offset(i * lines.1), step, len }, to) };
            match scales {
                Scales::None => {}
                Scales::OfLines((factors, step)) => {
                    let factor = unsafe { *factors.offset(i * step) }.abs();
                    to.iter_mut().for_each(|to| *to = *to * factor);
                }
                Scales::Within((factors, 1)) => {
                    let factors = unsafe { core::slice::from_raw_parts(factors, len) };
                    to.iter_mut().zip(factors).for_each(|(to, &factor)| *to = *to * factor.abs());
                }
                Scales::Within((factors, step)) => {
                    for (j, to) in to.iter_mut().enumerate() {
                        *to = *to * unsafe { *factors.offset(j as isize * step) }.abs();
                    }
                }
            }
        }
    }
}

/// Copies a run in the dtype to multiply in.
///
/// # Safety
///
/// The run lies within one allocation.
#[inline(always)]
unsafe fn copy<S: Level, T: Element>(level: S, from: Run<T>, to: &mut [T::Real]) {
    // SAFETY: the caller's promise, here and below.
    if let Some(slice) = unsafe { from.as_slice() } {
        return T::widen(level, slice, to);
    }
    for (i, to) in to.iter_mut().enumerate() {
        *to = <T::Real>::from_f64(unsafe { *from.at.offset(i as isize * from.step) }.to_f64());
    }
}

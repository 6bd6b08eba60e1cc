//! Products where one input has a single vector for each batch index: rows with rows, and vectors with matrices.
//!
//! `out[b, j] = Σₖ x[b, k] y[b, j, k]`. Every row that lies along memory is read once: its product and its norm come from one pass, and
//! in the backward pass its gradient is written while it is still in the cache. Memory sets the pace.

use alloc::{vec, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    kernel::{self, Compensated, Element, Real},
    norms::Scale,
    runs::{CHUNK, Run, RunMut},
    simd::{self, Isa, Task},
    space::{self, Axes, Axis, DX, DY, NOUT, OUT, Space, Steps, X, Y, advance},
    threads::{self, SharedPtr},
};

/// Partners of a vector for each task that shares it, at least.
const PARTNERS_PER_SHARE: usize = 8;

/// Rows of so few numbers are multiplied one number after the other: of 8 numbers, cutting them into registers takes longer than the
/// arithmetic. (The training of `examples/dense_dot.rs`, of which this is a part: 2.4 s so, 2.1 s without.)
const SHORT: usize = 16;

/// Bytes of gradients that would not stay in the caches beside the inputs: written past them, their lines need not be read first. (65536
/// rows of 128, 64 MiB: 4.2 ms so, 5.6 ms without; 256 × 200 vectors of 128, 26 MiB, normalized: 2.4 ms so, 2.75 ms without; 4096 rows of
/// 512, 16 MiB: no faster, and twice as slow into fresh memory. The third cache had 32 MiB.) Fewer in the kernels' own tests, which valgrind
/// runs too.
const PAST_CACHES_FROM: usize = if cfg!(test) { 1 << 20 } else { 20 << 20 };

/// The tensors of a product whose `x` has nothing free, each by its first number.
#[derive(Clone, Copy)]
pub(super) struct Rows<T, O> {
    pub x: *const T,
    pub y: *const T,
    /// The output, or its gradient.
    pub out: *mut O,
    /// The gradients, where wanted.
    pub dx: Option<*mut T>,
    pub dy: Option<*mut T>,
    /// For each element of the output: written by [`forward`] if saving, read by [`backward`] if saved.
    pub kept: Option<*mut KeptRow>,
}

// SAFETY: tasks on several threads read elements of dtypes that may be shared, and each writes to elements of its own: see `forward` and
// `backward`, which alone share one.
unsafe impl<T: Send + Sync, O: Send + Sync> Sync for Rows<T, O> {}

/// The product. False where numbers were met whose squares f64 cannot hold: the output is then not to be used.
///
/// # Safety
///
/// Every index of `space` lies within the tensors, nothing in it is empty, and nothing else reads or writes `out` and what is kept.
pub(super) unsafe fn forward<T, O>(tensors: Rows<T, O>, space: &Space, floor: Option<f64>) -> bool
where
    T: Element,
    O: Element<Real = T::Real>,
{
    let pieces = &Pieces::new(&space.k, false, false);
    let work = &Work { rows: tensors, read: pieces, write: pieces, floor, past_caches: false };
    all_ranges(space.batch.len() * space.j.len(), space.k.len(), |rows| Forward { work, space, rows })
}

/// Whether [`forward`] and [`backward`] are true of every normalized input: f64 holds all squares of the smaller dtypes.
pub(super) fn never_stops<T: Element>() -> bool {
    T::Real::NORMS.contains(&0.0) && T::Real::NORMS.contains(&f64::INFINITY)
}

/// The gradients that are wanted. False as in [`forward`].
///
/// # Safety
///
/// Every index of `space` lies within the tensors and what was kept, nothing in it is empty, and nothing else reads or writes `dx` and
/// `dy`. These may be `x` and `y` themselves where `in_place` says so and each number of `x` and `y` is met once.
pub(super) unsafe fn backward<T, O>(tensors: Rows<T, O>, space: &Space, floor: Option<f64>, in_place: bool) -> bool
where
    T: Element,
    O: Element<Real = T::Real>,
{
    // Where x is repeated along the batch its gradient collects a sum, as it does along j.
    let (own, repeated) = match tensors.dx {
        Some(_) => space.batch.split_by(DX),
        None => (space.batch.clone(), Axes::new([])),
    };
    let many = repeated.followed_by(&space.j);
    let (vectors, n, k) = (own.len(), many.len(), space.k.len());
    let (own, many) = (&own, &many);
    let written = vectors * (usize::from(tensors.dx.is_some()) + n * usize::from(tensors.dy.is_some()));
    let past_caches = !in_place && written.saturating_mul(k * size_of::<T>()) >= PAST_CACHES_FROM;
    let read = Pieces::new(&space.k, false, false);
    let write = Pieces::new(&space.k, in_place, past_caches);
    let work = &Work { rows: tensors, read: &read, write: &write, floor, past_caches };
    if n == 1 {
        return all_ranges(vectors, k, |rows| Pairs { work, own, rows });
    }

    // A vector with many partners. Where there are few vectors, several tasks share one, and their sums are added in the end.
    // A share has several partners: its sum, in f64, is then smaller than what it reads.
    let cost = vectors.saturating_mul(n).saturating_mul(k);
    let tasks = threads::tasks(cost);
    let shares = if vectors >= tasks { 1 } else { tasks.div_ceil(vectors).min(n.div_ceil(PARTNERS_PER_SHARE)) };
    let width = if tensors.dx.is_some() { k } else { 0 };
    let trusted = AtomicBool::new(true);
    let share = |vector: usize, share: usize, sum: Vec<f64>| {
        let partners = threads::part(n, shares, share);
        simd::dispatch(Partners { work, start: own.offset(vector), many, partners, sum })
    };
    let collect = |vector: usize, gathered: &Gathered| simd::dispatch(Collected { work, at: own.offset(vector), gathered });
    if shares == 1 {
        threads::for_each_range(vectors, n * k, |range| {
            let mut sum = vec![0.0; width];
            for vector in range {
                sum.fill(0.0);
                let Some(gathered) = share(vector, 0, core::mem::take(&mut sum)) else {
                    return trusted.store(false, Ordering::Relaxed);
                };
                collect(vector, &gathered);
                sum = gathered.sum;
            }
        });
        return trusted.into_inner();
    }
    let mut sums: Vec<Gathered> = vec![Default::default(); vectors * shares];
    let slots = SharedPtr::new(sums.as_mut_ptr());
    threads::for_each(vectors * shares, cost, |task| match share(task / shares, task % shares, vec![0.0; width]) {
        // SAFETY: each task has a slot of its own, and the slots outlive the tasks.
        Some(gathered) => unsafe { *slots.get().add(task) = gathered },
        None => trusted.store(false, Ordering::Relaxed),
    });
    let trusted = trusted.into_inner();
    if trusted {
        for (vector, shares) in sums.chunks_mut(shares).enumerate() {
            let (first, rest) = shares.split_first_mut().expect("at least one share");
            for more in rest {
                first.along += more.along;
                first.sum.iter_mut().zip(&more.sum).for_each(|(total, more)| *total += *more);
            }
            collect(vector, first);
        }
    }
    trusted
}

/// Cuts the work into ranges; true if all of their tasks are.
fn all_ranges<T: Task<Output = bool>>(count: usize, cost: usize, task: impl Fn(Range<usize>) -> T + Send + Sync) -> bool {
    let all = AtomicBool::new(true);
    threads::for_each_range(count, cost, |range| {
        if !simd::dispatch(task(range)) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

/// How the contracted axes are walked: in pieces of runs.
struct Pieces {
    outer: Axes,
    inner: Axis,
    /// Numbers of a run at a time.
    len: usize,
    /// Whether the inputs can be read where they are.
    as_they_are: bool,
    /// Whether that takes one piece.
    single: bool,
}

impl Pieces {
    fn new(k: &Axes, copied: bool, buffered: bool) -> Self {
        let (outer, inner) = k.inner();
        let as_they_are = !copied && [X, Y].iter().all(|&t| inner.step[t] == 1);
        // Gradients are written in pieces too, unless they lie side by side.
        let whole = as_they_are && !buffered && [DX, DY].iter().all(|&t| matches!(inner.step[t], 0 | 1));
        let len = if whole { inner.size } else { CHUNK.min(inner.size) };
        let single = as_they_are && outer.len() == 1 && len == inner.size;
        Pieces { len, outer, inner, as_they_are, single }
    }
}

/// What every task of a product knows.
struct Work<'a, T, O> {
    rows: Rows<T, O>,
    /// For passes that only read, and for those that write gradients: copied first where these take the place of the inputs.
    read: &'a Pieces,
    write: &'a Pieces,
    floor: Option<f64>,
    /// Whether gradients are written past the caches.
    past_caches: bool,
}

/// Where a task brings numbers that do not lie side by side: inputs, and a gradient on its way out.
struct Buffers<S: Isa, T> {
    isa: S,
    past_caches: bool,
    x: [T; CHUNK],
    y: [T; CHUNK],
    out: [T; CHUNK],
}

impl<S: Isa, T: Element> Buffers<S, T> {
    #[inline(always)]
    fn new(isa: S, past_caches: bool) -> Self {
        Buffers { isa, past_caches, x: [T::default(); CHUNK], y: [T::default(); CHUNK], out: [T::default(); CHUNK] }
    }
}

impl<S: Isa, T> Drop for Buffers<S, T> {
    /// Before another thread hears that the task is done.
    #[inline(always)]
    fn drop(&mut self) {
        if self.past_caches {
            self.isa.fence();
        }
    }
}

/// A piece of a row and its partner.
struct Piece<'a, T> {
    x: &'a [T],
    y: &'a [T],
    /// Where it lies.
    at: Steps,
    /// Which of the contracted indices it holds.
    range: Range<usize>,
    buffer: &'a mut [T],
}

impl<T: Element, O: Element<Real = T::Real>> Work<'_, T, O> {
    /// Calls `f` with the pieces of a row and its partner.
    ///
    /// # Safety
    ///
    /// `row` is where a row lies, by the space that [`forward`] or [`backward`] was called with; nobody writes to the slices while `f` has them.
    #[inline(always)]
    unsafe fn for_each_piece<S: Isa>(
        &self,
        pieces: &Pieces,
        buffers: &mut Buffers<S, T>,
        row: Steps,
        mut f: impl FnMut(Piece<'_, T>),
    ) {
        let Pieces { outer, inner, len, as_they_are, single } = pieces;
        let run = |at: Steps, len: usize| {
            // SAFETY: the row lies within the tensors, as the caller says, and so do its pieces.
            let (x, y) = unsafe { (self.rows.x.offset(at[X]), self.rows.y.offset(at[Y])) };
            (Run { at: x, step: inner.step[X], len }, Run { at: y, step: inner.step[Y], len })
        };
        if *single {
            let (x, y) = run(row, *len);
            // SAFETY: nothing writes to these rows while they are read: gradients in their place are written from copies.
            if let (Some(x), Some(y)) = unsafe { (x.as_slice(), y.as_slice()) } {
                f(Piece { x, y, at: row, range: 0..*len, buffer: &mut buffers.out });
            }
            return;
        }
        for block in 0..outer.len() {
            let block_at = space::sum(row, outer.offset(block));
            let mut from = 0;
            while from < inner.size {
                let len = (*len).min(inner.size - from);
                let at = advance(block_at, inner, from);
                let first = block * inner.size + from;
                let (x, y) = run(at, len);
                // SAFETY: as above; pieces that are not as they are fit the buffers.
                let (x, y) = unsafe {
                    match (*as_they_are, x.as_slice(), y.as_slice()) {
                        (true, Some(x), Some(y)) => (x, y),
                        _ => (x.gather(&mut buffers.x), y.gather(&mut buffers.y)),
                    }
                };
                f(Piece { x, y, at, range: first..first + len, buffer: &mut buffers.out });
                from += len;
            }
        }
    }

    /// The length of rows that are short, plain and lie along memory.
    #[inline(always)]
    fn short(&self) -> Option<usize> {
        let Pieces { inner, single, .. } = self.read;
        let along = [DX, DY].iter().all(|&t| matches!(inner.step[t], 0 | 1));
        (inner.size <= SHORT && T::IS_REAL && self.floor.is_none() && *single && along).then_some(inner.size)
    }

    /// Adds up what `f` makes of each piece.
    ///
    /// # Safety
    ///
    /// `at` is where a row lies, by the space that [`forward`] or [`backward`] was called with.
    #[inline(always)]
    unsafe fn sums<S: Isa, const N: usize>(
        &self,
        buffers: &mut Buffers<S, T>,
        at: Steps,
        f: impl Fn(&[T], &[T]) -> [f64; N],
    ) -> [f64; N] {
        let mut sums = [Compensated::default(); N];
        // SAFETY: `at` is where a row lies, or a piece of one, as the caller says.
        unsafe {
            self.for_each_piece(
                self.read,
                buffers,
                at,
                #[inline(always)]
                |piece| {
                    let more = f(piece.x, piece.y);
                    for (sum, more) in sums.iter_mut().zip(more) {
                        sum.add(more);
                    }
                },
            )
        };
        sums.map(
            #[inline(always)]
            |sum| sum.total(),
        )
    }

    /// A number of the output. `None` where a square is beyond f64.
    ///
    /// # Safety
    ///
    /// `at` is where a row lies, by the space that [`forward`] or [`backward`] was called with.
    #[inline(always)]
    unsafe fn output<S: Isa>(&self, buffers: &mut Buffers<S, T>, at: Steps) -> Option<f64> {
        let isa = buffers.isa;
        match self.floor {
            None => {
                // SAFETY: `at` is where a row lies, as the caller says.
                let [xy] = unsafe {
                    self.sums(
                        buffers,
                        at,
                        #[inline(always)]
                        |x, y| [T::dot(isa, x, y)],
                    )
                };
                Some(xy)
            }
            Some(floor) => {
                // SAFETY: as above.
                let scaled = unsafe { self.normalized(buffers, at, floor) }?;
                if let Some(kept) = self.rows.kept {
                    // SAFETY: there is a place for each row, and this row is this task's own.
                    unsafe { *kept.offset(at[NOUT]) = scaled.keep() };
                }
                Some(kernel::into_range(scaled.cosine))
            }
        }
    }

    /// A row with a partner, normalized.
    ///
    /// # Safety
    ///
    /// `at` is where a row lies, by the space that [`forward`] or [`backward`] was called with.
    #[inline(always)]
    unsafe fn normalized<S: Isa>(&self, buffers: &mut Buffers<S, T>, at: Steps, floor: f64) -> Option<Scaled> {
        let isa = buffers.isa;
        // SAFETY: `at` is where a row lies, or a piece of one, as the caller says.
        let [xx, xy, yy] = unsafe {
            self.sums(
                buffers,
                at,
                #[inline(always)]
                |x, y| T::dot_and_squares(isa, x, y),
            )
        };
        let (x, y) = (Scale::new::<T::Real>(xx, floor), Scale::new::<T::Real>(yy, floor));
        let trusted = x.is_within(T::Real::NORMS) && y.is_within(T::Real::NORMS);
        trusted.then_some(Scaled { x, y, cosine: xy * x.inverse() * y.inverse() })
    }

    /// [`Self::normalized`], as it was kept or anew.
    ///
    /// # Safety
    ///
    /// `at` is where a row lies, by the space that [`forward`] or [`backward`] was called with.
    #[inline(always)]
    unsafe fn scaled<S: Isa>(&self, buffers: &mut Buffers<S, T>, at: Steps, floor: f64) -> Option<Scaled> {
        match self.rows.kept {
            // SAFETY: something was kept for each row, and nobody writes to it any more.
            Some(kept) => Some(Scaled::kept(unsafe { *kept.offset(at[NOUT]) })),
            // SAFETY: `at` is where a row lies, as the caller says.
            None => unsafe { self.normalized(buffers, at, floor) },
        }
    }

    /// The gradient of the output at a place.
    ///
    /// # Safety
    ///
    /// `at` is where a row lies, by the space that [`forward`] or [`backward`] was called with.
    #[inline(always)]
    unsafe fn grad(&self, at: Steps) -> f64 {
        // SAFETY: `at` lies within the gradient of the output, and nobody writes to that.
        unsafe { *self.rows.out.offset(at[OUT]) }.to_f64()
    }

    /// Writes `a y`, or `a y − p x` where a part along `x` is taken away, to a piece of the gradient of `x`, where it is wanted. `x` and
    /// `y` stand for either input, and with `p` comes a number that no term is larger than.
    ///
    /// # Safety
    ///
    /// `at` is where a piece lies, by the space that [`backward`] was called with, and the piece of the gradient is this task's own.
    #[inline(always)]
    unsafe fn write<S: Isa>(
        &self,
        isa: S,
        gradient: (Option<*mut T>, usize),
        at: Steps,
        buffer: &mut [T],
        (a, y): (f64, &[T]),
        (p, x): (Option<(f64, f64)>, &[T]),
    ) {
        // SAFETY: `at` is where a row lies, or a piece of one, as the caller says.
        unsafe {
            self.fill(
                isa,
                gradient,
                at,
                x.len(),
                buffer,
                #[inline(always)]
                |to| match p {
                    None => T::scale(isa, to, a, y),
                    Some((p, most)) => T::combine(isa, to, (a, y), (-p, x), most),
                },
            )
        }
    }

    /// Fills a piece of a gradient, where it is wanted.
    ///
    /// # Safety
    ///
    /// `at` is where a piece lies, by the space that [`backward`] was called with, and the piece of the gradient is this task's own.
    #[inline(always)]
    unsafe fn fill<S: Isa>(
        &self,
        isa: S,
        (gradient, tensor): (Option<*mut T>, usize),
        at: Steps,
        len: usize,
        buffer: &mut [T],
        write: impl FnOnce(&mut [T]),
    ) {
        if let Some(gradient) = gradient {
            let step = self.write.inner.step[tensor];
            // SAFETY: `at` is where a row lies, or a piece of one, as the caller says.
            let at = unsafe { gradient.offset(at[tensor]) };
            let run = RunMut { at, step, len };
            let past_caches = step == 1 && self.past_caches;
            // One call of `write`, which is compiled into its place: three took twice the time to build. SAFETY: as above.
            unsafe {
                let to = if past_caches { &mut buffer[..len] } else { run.target(buffer) };
                write(to);
                if past_caches { simd::stream(isa, to, at) } else { run.deliver(to) }
            }
        }
    }
}

/// The output of some rows.
struct Forward<'a, T, O> {
    work: &'a Work<'a, T, O>,
    space: &'a Space,
    rows: Range<usize>,
}

impl<T: Element, O: Element<Real = T::Real>> Task for Forward<'_, T, O> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> bool {
        let Forward { work, space, rows } = self;
        let n = space.j.len();
        // SAFETY: the promise made to `forward`; no two rows share a place in the output.
        let write = |at: Steps, out: f64| unsafe { *work.rows.out.offset(at[OUT]) = O::from_f64(out) };
        if let (1, Some(len)) = (n, work.short()) {
            for at in space.batch.walk(rows) {
                // SAFETY: as above.
                let (x, y) = unsafe { (work.rows.x.offset(at[X]), work.rows.y.offset(at[Y])) };
                let mut sum = 0.0;
                for i in 0..len {
                    // SAFETY: as above.
                    sum += unsafe { (*x.add(i)).to_f64() * (*y.add(i)).to_f64() };
                }
                write(at, sum);
            }
            return true;
        }
        let buffers = &mut Buffers::new(isa, work.past_caches);
        if n == 1 {
            for at in space.batch.walk(rows) {
                // SAFETY: as above.
                let Some(out) = (unsafe { work.output(buffers, at) }) else { return false };
                write(at, out);
            }
            return true;
        }
        let vectors = rows.start / n..rows.end.div_ceil(n);
        for (vector, start) in vectors.clone().zip(space.batch.walk(vectors)) {
            let first = vector * n;
            let partners = rows.start.max(first) - first..rows.end.min(first + n) - first;
            for at in space.j.walk(partners) {
                let at = space::sum(start, at);
                // SAFETY: as above.
                let Some(out) = (unsafe { work.output(buffers, at) }) else { return false };
                write(at, out);
            }
        }
        true
    }
}

/// Both gradients of rows that have one partner each.
struct Pairs<'a, T, O> {
    work: &'a Work<'a, T, O>,
    own: &'a Axes,
    rows: Range<usize>,
}

impl<T: Element, O: Element<Real = T::Real>> Task for Pairs<'_, T, O> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> bool {
        let Pairs { work, own, rows } = self;
        let (dx, dy) = ((work.rows.dx, DX), (work.rows.dy, DY));
        if let Some(len) = work.short() {
            for at in own.walk(rows) {
                // SAFETY: the promise made to `backward`; both numbers are read before a gradient may take their place.
                unsafe {
                    let (g, x, y) = (work.grad(at), work.rows.x.offset(at[X]), work.rows.y.offset(at[Y]));
                    let (dx, dy) = (dx.0.map(|dx| dx.offset(at[DX])), dy.0.map(|dy| dy.offset(at[DY])));
                    for i in 0..len {
                        let (x, y) = ((*x.add(i)).to_f64(), (*y.add(i)).to_f64());
                        if let Some(dx) = dx {
                            *dx.add(i) = T::from_f64(g * y);
                        }
                        if let Some(dy) = dy {
                            *dy.add(i) = T::from_f64(g * x);
                        }
                    }
                }
            }
            return true;
        }
        let buffers = &mut Buffers::new(isa, work.past_caches);
        let both_along = !work.past_caches && [DX, DY].iter().all(|&t| work.write.inner.step[t] == 1);
        for at in own.walk(rows) {
            // SAFETY: `at` is where a row lies, by the space that `backward` was called with.
            let g = unsafe { work.grad(at) };
            let (w, px, py) = match work.floor {
                None => (g, None, None),
                Some(floor) => {
                    // SAFETY: as above.
                    let Some(scaled) = (unsafe { work.scaled(buffers, at, floor) }) else { return false };
                    let Scaled { x: sx, y: sy, cosine } = scaled;
                    (g * sx.inverse() * sy.inverse(), Some(sx.part_along(g, cosine)), Some(sy.part_along(g, cosine)))
                }
            };
            // SAFETY: as above; a row's gradients are written from copies where they overwrite it, and no two rows share an element.
            unsafe {
                work.for_each_piece(
                    work.write,
                    buffers,
                    at,
                    #[inline(always)]
                    |Piece { x, y, at, buffer, .. }| match (dx.0, dy.0, px, py) {
                        (Some(dx), Some(dy), Some((px, x_most)), Some((py, y_most))) if both_along => {
                            let to = [dx.offset(at[DX]), dy.offset(at[DY])];
                            let to = to.map(|to| core::slice::from_raw_parts_mut(to, x.len()));
                            T::combine_both(isa, to, w, [x, y], [(-px, x_most), (-py, y_most)]);
                        }
                        _ => {
                            work.write(isa, dx, at, buffer, (w, y), (px, x));
                            work.write(isa, dy, at, buffer, (w, x), (py, y));
                        }
                    },
                )
            };
        }
        true
    }
}

/// Partners added up before their sum goes to one that is compensated.
const PARTIAL: usize = 64;

/// The gradients of some of the partners of one vector.
struct Partners<'a, T, O> {
    work: &'a Work<'a, T, O>,
    start: Steps,
    many: &'a Axes,
    partners: Range<usize>,
    sum: Vec<f64>,
}

impl<T: Element, O: Element<Real = T::Real>> Task for Partners<'_, T, O> {
    type Output = Option<Gathered>;

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) -> Self::Output {
        let Partners { work, start, many, partners, mut sum } = self;
        let buffers = &mut Buffers::new(isa, work.past_caches);
        let (mut along, mut x) = (Compensated::default(), None);
        // f64 has the digits for the sum of any number of partners of the smaller dtypes.
        let compensated = size_of::<T::Real>() == size_of::<f64>() && partners.len() > PARTIAL;
        let (mut total, mut lost) =
            if compensated { (vec![0.0; sum.len()], vec![0.0; sum.len()]) } else { (Vec::new(), Vec::new()) };
        let mut partial = 0;
        for at in many.walk(partners) {
            let at = space::sum(start, at);
            if compensated && partial == PARTIAL {
                kernel::add_compensated(&mut total, &mut lost, &sum);
                sum.fill(0.0);
                partial = 0;
            }
            partial += 1;
            // SAFETY: `at` is where a row lies: offsets of the space that `backward` was called with, one of the vector, one of a partner.
            let g = unsafe { work.grad(at) };
            let (to_y, to_x, from_y) = match work.floor {
                None => (g, g, None),
                Some(floor) => {
                    // SAFETY: as above.
                    let Scaled { x: sx, y: sy, cosine } = unsafe { work.scaled(buffers, at, floor) }?;
                    along.add(g * cosine);
                    x = Some(sx);
                    (g * sx.inverse() * sy.inverse(), g * sy.inverse(), Some(sy.part_along(g, cosine)))
                }
            };
            // SAFETY: as above; gradients are written from copies where they overwrite a row, and no two partners share an element of dy.
            unsafe {
                work.for_each_piece(
                    work.write,
                    buffers,
                    at,
                    #[inline(always)]
                    |Piece { x, y, at, range, buffer }| {
                        if !sum.is_empty() {
                            kernel::accumulate(isa, &mut sum[range], to_x, y);
                        }
                        work.write(isa, (work.rows.dy, DY), at, buffer, (to_y, x), (from_y, y));
                    },
                )
            };
        }
        if compensated {
            kernel::add_compensated(&mut total, &mut lost, &sum);
            sum.iter_mut()
                .zip(total.iter().zip(&lost))
                .for_each(|(sum, (&total, &lost))| *sum = kernel::with_lost(total, lost));
        }
        Some(Gathered { along: along.total(), x, sum })
    }
}

/// What partners give to the gradient of the vector's direction.
#[derive(Clone, Default)]
struct Gathered {
    /// How much of it lies along the vector.
    along: f64,
    /// Of the vector, where it is normalized.
    x: Option<Scale>,
    sum: Vec<f64>,
}

/// The gradient of a vector from what its partners gave.
struct Collected<'a, T, O> {
    work: &'a Work<'a, T, O>,
    at: Steps,
    gathered: &'a Gathered,
}

impl<T: Element, O: Element<Real = T::Real>> Task for Collected<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let Collected { work, at, gathered: Gathered { along, x, sum } } = self;
        if work.rows.dx.is_none() {
            return;
        }
        let buffers = &mut Buffers::new(isa, work.past_caches);
        let (factor, projected) = match x {
            None => (1.0, None),
            Some(x) => (x.inverse(), Some(along * x.projected())),
        };
        // SAFETY: a vector and one of its partners, by the space that `backward` was called with; the gradient of the vector is this task's.
        unsafe {
            work.for_each_piece(
                work.write,
                buffers,
                at,
                #[inline(always)]
                |Piece { x, at, range, buffer, .. }| {
                    work.fill(
                        isa,
                        (work.rows.dx, DX),
                        at,
                        x.len(),
                        buffer,
                        #[inline(always)]
                        |to| match projected {
                            None => kernel::scale(isa, to, factor, &sum[range]),
                            Some(px) => kernel::combine(isa, to, (factor, &sum[range]), (-px, x)),
                        },
                    );
                },
            )
        };
    }
}

/// A row and its partner, normalized.
struct Scaled {
    x: Scale,
    y: Scale,
    cosine: f64,
}

/// A [`Scaled`] in memory.
pub(super) type KeptRow = [f64; 3];

impl Scaled {
    #[inline(always)]
    fn keep(&self) -> KeptRow {
        [self.x.0, self.y.0, self.cosine]
    }

    #[inline(always)]
    fn kept([x, y, cosine]: KeptRow) -> Self {
        Scaled { x: Scale(x), y: Scale(y), cosine }
    }
}

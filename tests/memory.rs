//! What the layer takes from memory on flex: its results, and temporaries that together are smaller than the smaller input. Norms that
//! are kept for the gradients take an eighth of the inputs at most. Gradients of rows that nobody else holds take no memory of their own.
//! And what a search of the best items takes, chunks of scores, and a batch with cached gradients: a chunk of its towers.
//!
//! Its own binary and a single test, because an allocator is the whole program's.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use burn::prelude::*;
use burn::tensor::activation::relu;
use burn_dot::DotConfig;
use burn_retrieval::{Catalogue, InBatchSoftmaxConfig, Similarity, gradient_cache};

/// The system's allocator, counting what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(HELD.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the layout's size is not zero: this allocator, too, asks that of its callers.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: `alloc` above got this memory from the system's allocator by this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `f`; how many bytes more than before were held at the worst moment. What was freed and kept for reuse counts as held, and nothing
/// is kept from before.
fn most_held<T>(f: impl FnOnce() -> T) -> (T, usize) {
    burn_dot::release_memory();
    let before = HELD.load(SeqCst);
    MOST.store(before, SeqCst);
    let result = f();
    (result, MOST.load(SeqCst) - before)
}

/// How the inputs lie in memory.
#[derive(Clone, Copy, Debug)]
enum Lies {
    Contiguous,
    /// The last two axes stored in the other order.
    Transposed,
}

const F32: usize = size_of::<f32>();

/// Bytes that are kept at most, as `burn_dot::release_memory` says.
const CACHED: usize = 192 << 20;

fn check<const D1: usize, const D2: usize, const DO: usize>(name: &str, lhs: [usize; D1], rhs: [usize; D2], config: DotConfig) {
    for lies in [Lies::Contiguous, Lies::Transposed] {
        for normalize in [false, true] {
            let dot = config.clone().with_normalize(normalize).init();
            let name = format!("{name}, {lies:?}, normalize {normalize}");
            let device = Device::flex();
            let inputs = |device: &Device| {
                let tensor = |shape: Vec<usize>, phase: f32| {
                    let data: Vec<f32> = (0..shape.iter().product()).map(|i| (phase + i as f32 * 1.618).sin()).collect();
                    TensorData::new(data, shape)
                };
                let view = |shape: &[usize]| {
                    let mut stored = shape.to_vec();
                    if matches!(lies, Lies::Transposed) {
                        let last = stored.len() - 1;
                        stored.swap(last - 1, last);
                    }
                    stored
                };
                (
                    Tensor::<D1>::from_data(tensor(view(&lhs), 0.1), device),
                    Tensor::<D2>::from_data(tensor(view(&rhs), 0.4), device),
                )
            };
            let seen = |x: Tensor<D1>, y: Tensor<D2>| match lies {
                Lies::Contiguous => (x, y),
                Lies::Transposed => (x.swap_dims(D1 - 2, D1 - 1), y.swap_dims(D2 - 2, D2 - 1)),
            };
            let bytes = |shape: &[usize]| F32 * shape.iter().product::<usize>();
            let smaller = bytes(&lhs).min(bytes(&rhs));

            let (x, y) = inputs(&device);
            let (x, y) = seen(x, y);
            let forward = || -> Tensor<DO> { dot.forward(x.clone(), y.clone()) };
            let first = forward(); // Threads and the buffers that they keep are made once.
            let out = bytes(&first.dims());
            let (_, held) = most_held(forward);
            assert!(
                held < out + smaller,
                "{name}: forward held {held} bytes for an output of {out}, inputs of {smaller} or more"
            );
            drop((first, x, y));

            let (x, y) = inputs(&device.clone().autodiff());
            let (x, y) = (x.require_grad(), y.require_grad());
            let backward = || {
                let (x, y) = seen(x.clone(), y.clone());
                let out: Tensor<DO> = dot.forward(x, y);
                out.backward()
            };
            drop(backward());
            // The output, its gradient of ones, and the gradients of the inputs.
            let inputs = bytes(&lhs) + bytes(&rhs);
            let results = 2 * out + inputs;
            // Norms are kept from the forward pass; a single vector, broadcast over many, may be smaller than all their norms.
            let others = if normalize { smaller.max(inputs / 8) } else { smaller };
            let (_, held) = most_held(backward);
            assert!(
                held < results + others,
                "{name}: the backward pass held {held} bytes for results of {results}, inputs of {smaller} or more"
            );
        }
    }
}

/// Inputs that only the layer holds on to: what a model's earlier layers made. Their gradients are written in place.
fn check_reuse<const D1: usize, const D2: usize>(lhs: [usize; D1], rhs: [usize; D2], config: DotConfig) {
    let device = Device::flex().autodiff();
    let (x, y) = (Tensor::<D1>::ones(lhs, &device).require_grad(), Tensor::<D2>::ones(rhs, &device).require_grad());
    for normalize in [false, true] {
        let dot = config.clone().with_normalize(normalize).init();
        let train = || {
            let out: Tensor<2> = dot.forward(x.clone() * 1.5, y.clone() * 1.5);
            out.backward()
        };
        drop(train());
        let bytes = |shape: &[usize]| F32 * shape.iter().product::<usize>();
        let inputs = bytes(&lhs) + bytes(&rhs);
        let (_, held) = most_held(train);
        assert!(
            held < inputs + inputs / 4,
            "{lhs:?}, {rhs:?}, normalize {normalize}: held {held} bytes for inputs of {inputs}"
        );
    }
}

/// Freed results are kept for the next ones: a step of a training takes none of the system's memory for them. They are bounded, and given
/// back when asked for.
fn check_kept() {
    let device = Device::flex().autodiff();
    let dot = DotConfig::new(1).with_normalize(true).init();
    for rows in [1024, 32768] {
        let (x, y) = (Tensor::<2>::ones([rows, 256], &device), Tensor::<2>::ones([rows, 256], &device) * 2.0);
        let bytes = F32 * rows * 256;
        let train = || {
            let (x, y) = (x.clone().require_grad(), y.clone().require_grad());
            let out: Tensor<2> = dot.forward(x, y);
            drop(out.backward());
        };
        burn_dot::release_memory();
        let before = HELD.load(SeqCst);
        train();
        let kept = HELD.load(SeqCst) - before;
        assert!((2 * bytes..=CACHED).contains(&kept), "{rows} rows: kept {kept} bytes of two gradients of {bytes}");
        MOST.store(HELD.load(SeqCst), SeqCst);
        let held = HELD.load(SeqCst);
        train();
        let more = MOST.load(SeqCst) - held;
        assert!(more < bytes / 16, "{rows} rows: another step took {more} bytes more");
        burn_dot::release_memory();
        assert!(HELD.load(SeqCst) < before + bytes / 16, "{rows} rows: some is still held");
    }
    // Larger than what is kept: given back at once.
    let rows = CACHED / (F32 * 256) + 1;
    let (x, y) = (Tensor::<2>::ones([rows, 256], &device), Tensor::<2>::ones([rows, 256], &device));
    let before = HELD.load(SeqCst);
    let out: Tensor<2> = dot.forward(x.clone().require_grad(), y.clone().require_grad());
    drop(out.backward());
    let kept = HELD.load(SeqCst) - before;
    assert!(kept < CACHED / 16, "gradients of {CACHED} bytes and more: kept {kept}");
}

/// The search of the best items makes scores in chunks, never queries × items of them.
fn check_search() {
    let device = Device::flex();
    let (queries, items, k) = (512, 40_000, 10);
    for similarity in [Similarity::Dot, Similarity::Cosine] {
        let before = HELD.load(SeqCst);
        let catalogue = Catalogue::new(Tensor::<2>::ones([items, 32], &device), similarity);
        // What was given is freed, where it was copied to huge pages.
        let (held, of_items) = (HELD.load(SeqCst) - before, F32 * items * 32);
        assert!(held < of_items + of_items / 4, "{similarity:?}: a catalogue holds {held} bytes for items of {of_items}");
        let asked = Tensor::<2>::ones([queries, 32], &device);
        drop(catalogue.top_k(asked.clone(), k));
        let (_, held) = most_held(|| catalogue.top_k(asked, k));
        let scores = F32 * queries * items;
        assert!(held < scores / 4, "{similarity:?}: held {held} bytes, where all scores are {scores}");
    }
}

/// A batch whose towers are embedded in chunks takes the memory of a chunk, not of all that the towers save for their backward pass.
fn check_gradient_cache() {
    let device = Device::flex().autodiff();
    let (rows, hidden) = (2048, 1024);
    let layers = [(64, hidden), (hidden, 16)].map(|(from, to)| -> nn::Linear { nn::LinearConfig::new(from, to).init(&device) });
    let x = Tensor::<2>::ones([rows, 64], &device);
    let embed = |range: Range<usize>| layers[1].forward(relu(layers[0].forward(x.clone().slice(range))));
    let loss = InBatchSoftmaxConfig::new().with_chunk(Some(64)).init(&device);
    let held = |chunk: usize| {
        most_held(|| gradient_cache([(rows, &embed), (rows, &embed)], chunk, |[q, c]| loss.forward(q, c), drop)).1
    };
    let (whole, cached, saved) = (held(rows), held(64), F32 * rows * hidden);
    assert!(whole > saved && cached < saved / 2, "held {cached} bytes, {whole} in one chunk, where a tower saves {saved}");
}

#[test]
fn results_take_memory_and_little_else_does() {
    check_kept();
    check_search();
    check_gradient_cache();
    check_reuse([8192, 256], [8192, 256], DotConfig::new(1));
    check_reuse([2048, 64], [2048, 40, 64], DotConfig::new((1, 2)));
    check::<2, 2, 2>("rows with rows", [8192, 256], [8192, 256], DotConfig::new(1));
    check::<2, 3, 2>("vectors with matrices", [2048, 64], [2048, 40, 64], DotConfig::new((1, 2)));
    check::<3, 3, 3>("matrices", [16, 300, 256], [16, 280, 256], DotConfig::new(2));
    // The matrix product packs panels of its inputs, at most a few megabytes: the inputs are larger.
    check::<3, 3, 3>("one large matrix", [1, 2048, 1536], [1, 2048, 1024], DotConfig::new(1));
    check::<4, 4, 5>("matrices with more axes", [8, 8, 128, 64], [8, 6, 64, 160], DotConfig::new((3, 2)));
}

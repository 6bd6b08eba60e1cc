//! [`gradient_cache`], and what it takes: [`Embed`].

use core::ops::Range;

use burn_core::tensor::{Gradients, Tensor};

use crate::scan::ranges;

/// What embeds a range of rows, `m` of them as `(m, n)`.
pub type Embed<'a> = &'a dyn Fn(Range<usize>) -> Tensor<2>;

/// Trains on a batch whose towers do not fit into memory: the gradients of a large batch, in the memory of a chunk.
///
/// ```text
/// 1. embed all rows in chunks, and free what a backward pass would need
/// 2. the loss of all embeddings, and its gradient with respect to them
/// 3. embed each chunk again, and carry its part of the gradient back into the towers
/// ```
///
/// Each of `towers` is how many rows there are, and what embeds a range of them: queries, candidates, and hard negatives if there are any.
/// `loss` gets all embeddings. `grads` is called with the gradients of the loss's own parameters, then with those of each chunk of each
/// tower: add them up, with Burn's `GradientsAccumulator` say. Returns the loss.
///
/// # Shapes
///
/// Each range of `m` rows is embedded as `(m, n)`; the loss is `[1]`.
///
/// # Numerics
///
/// A tower that is not tracked, frozen or without autodiff, gets no gradients. The sum of the gradients is that of the whole batch, but for
/// rounding. Towers run twice, and must give the same both times: no dropout. Burn frees what a tower has saved in a backward pass only, so
/// each chunk has two of these as well. All that is trained must run within the towers: Burn consumes a graph in its first backward pass.
///
/// # Panics
///
/// Where `chunk` is 0, or as `loss` does.
///
/// # Source
///
/// Gao et al. (2021), GradCache; `CachedMultipleNegativesRankingLoss` of sentence-transformers.
///
/// ```
/// use burn::{nn::LinearConfig, prelude::*};
/// use burn::optim::{GradientsAccumulator, GradientsParams};
/// use burn_retrieval::{InBatchSoftmaxConfig, gradient_cache};
///
/// let device = Device::flex().autodiff();
/// let tower = LinearConfig::new(3, 2).init(&device);
/// let x = Tensor::<2>::random([5, 3], burn::tensor::Distribution::Default, &device);
/// let loss = InBatchSoftmaxConfig::new().init(&device);
///
/// let embed = |rows: core::ops::Range<usize>| tower.forward(x.clone().slice(rows));
/// let mut accumulator = GradientsAccumulator::new();
/// let value = gradient_cache([(5, &embed), (5, &embed)], 2, |[q, c]| loss.forward(q, c), |grads| {
///     accumulator.accumulate(&tower, GradientsParams::from_grads(grads, &tower));
/// });
/// assert!(value.into_scalar::<f32>() > 0.0);
/// let grads = accumulator.grads(); // as those of `loss.forward(embed(0..5), embed(0..5)).backward()`
/// assert_eq!(grads.len(), 2);
/// ```
#[track_caller]
pub fn gradient_cache<const N: usize>(
    towers: [(usize, Embed<'_>); N],
    chunk: usize,
    loss: impl FnOnce([Tensor<2>; N]) -> Tensor<1>,
    mut grads: impl FnMut(Gradients),
) -> Tensor<1> {
    assert!(chunk > 0, "gradient_cache: a chunk of 0 rows holds nothing; give 1 or more");
    // A tower that is frozen is tracked by nothing, and gets no gradients.
    let embeddings = towers.map(|(rows, embed)| {
        let mut is_tracked = false;
        let mut embed = |rows| {
            let embedded = embed(rows);
            let values = embedded.clone().detach();
            if embedded.is_tracked() {
                is_tracked = true;
                drop(embedded.sum().backward()); // Frees what the tower has saved.
            }
            values
        };
        let chunks = if rows == 0 { vec![embed(0..0)] } else { ranges(rows, chunk).map(embed).collect() };
        let all = Tensor::cat(chunks, 0);
        if is_tracked { all.require_grad() } else { all }
    });
    let value = loss(embeddings.clone());
    if !value.is_tracked() {
        return value.inner();
    }
    let of_embeddings = value.backward();
    let parts = embeddings.map(|all| all.grad(&of_embeddings));
    grads(of_embeddings);
    for ((rows, embed), part) in towers.into_iter().zip(parts) {
        let Some(part) = part else { continue };
        for rows in ranges(rows, chunk) {
            grads((embed(rows.clone()) * part.clone().slice(rows)).sum().backward());
        }
    }
    value.inner()
}

//! Training: batches of pairs, with the words that the model confuses most as further negatives.

use anyhow::Result;
use burn::optim::{AdamConfig, GradientsParams};
use burn::prelude::*;
use burn_retrieval::{Pairs, metrics};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

use crate::{
    common::checkpoint::{Folder, Training},
    data::{Pair, Spellings},
    features::Features,
    model::{Side, Towers},
};

const BATCH: usize = 1024;
const LEARNING_RATE: f64 = 0.008;
/// Words that a misspelling is nearest to, but that it does not mean.
const CONFUSED: usize = 3;
/// At most so many of them in a batch.
const HARD_NEGATIVES: usize = 1536;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Objective {
    /// Each misspelling is to find its word among those of the batch
    Softmax,
    /// Each pair alone, right or wrong: binary cross-entropy, to compare with
    Pairs,
}

/// What a run is: a checkpoint of another cannot be resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub seed: u64,
    pub dim: usize,
    pub epochs: usize,
    pub objective: Objective,
    pub features: usize,
    pub training: usize,
}

/// A point of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    pub loss: f64,
    pub temperature: f64,
    pub recall_1: f64,
    pub recall_10: f64,
}

pub type State = Training<Towers, Epoch>;

/// Before the first epoch.
pub fn untrained(settings: &Settings, features: &Features, device: &Device) -> State {
    device.seed(settings.seed);
    State::new(Towers::new(features, settings.dim, device), AdamConfig::new().init())
}

/// Batches that a model is trained on at least, by default: those of two epochs of all pairs.
const BATCHES: usize = 140;

/// Passes over so many pairs that make [`BATCHES`], and two at least.
pub fn enough_epochs(pairs: usize) -> usize {
    BATCHES.div_ceil(pairs.div_ceil(BATCH).max(1)).max(2)
}

pub struct Trainer<'a> {
    pub settings: &'a Settings,
    pub spellings: &'a Spellings,
    pub features: &'a Features,
    pub device: &'a Device,
    pub checkpoints: &'a Folder,
}

impl Trainer<'_> {
    /// Trains to the last epoch, with a checkpoint after each.
    pub fn run(&self, mut state: State) -> Result<State> {
        let batches = self.spellings.training.len().div_ceil(BATCH);
        let progress = ProgressBar::new((self.settings.epochs * batches) as u64);
        progress.set_style(
            ProgressStyle::with_template("{bar:40} {pos}/{len} batches, {elapsed} {msg}").expect("a valid template"),
        );
        progress.set_position((state.curve.len() * batches) as u64);
        while state.curve.len() < self.settings.epochs {
            state = self.epoch(state, &progress)?;
            state.save(self.checkpoints, self.settings)?;
        }
        progress.finish();
        Ok(state)
    }

    /// One epoch. Its order depends on the seed and its number only, so that a resumed run goes on as it would have.
    fn epoch(&self, mut state: State, progress: &ProgressBar) -> Result<State> {
        let number = state.curve.len();
        let mut rng = StdRng::seed_from_u64(self.settings.seed.wrapping_mul(1009).wrapping_add(number as u64 + 1));
        let confused = match self.settings.objective {
            Objective::Softmax => self.confused_words(&state.model)?,
            Objective::Pairs => vec![Vec::new(); self.spellings.words.len()],
        };
        let mut order: Vec<usize> = (0..self.spellings.training.len()).collect();
        order.shuffle(&mut rng);
        let batches = order.len().div_ceil(BATCH);
        let mut total = 0.0;
        for (i, batch) in order.chunks(BATCH).enumerate() {
            let pairs: Vec<&Pair> = batch.iter().map(|&pair| &self.spellings.training[pair]).collect();
            let mut hard: Vec<usize> = pairs.iter().flat_map(|pair| confused[pair.word].iter().copied()).collect();
            hard.sort_unstable();
            hard.dedup();
            hard.shuffle(&mut rng);
            hard.truncate(HARD_NEGATIVES);
            let loss = self.loss(&state.model, &pairs, &hard);
            total += loss.clone().into_scalar::<f64>() * batch.len() as f64;
            let grads = GradientsParams::from_grads(loss.backward(), &state.model);
            let done = (number * batches + i) as f64 / (self.settings.epochs * batches) as f64;
            state.model = state.optimizer.step(LEARNING_RATE * (1.0 - done), state.model, grads);
            progress.inc(1);
        }
        let epoch = self.evaluate(&state.model, total / order.len() as f64)?;
        progress.set_message(format!(
            "loss {:.3}, held-out recall@1 {:.4}, @10 {:.4}",
            epoch.loss, epoch.recall_1, epoch.recall_10
        ));
        state.curve.push(epoch);
        Ok(state)
    }

    fn loss(&self, model: &Towers, pairs: &[&Pair], hard: &[usize]) -> Tensor<1> {
        let words = &self.spellings.words;
        let typos: Vec<&str> = pairs.iter().map(|pair| pair.typo.as_str()).collect();
        let ids: Vec<usize> = pairs.iter().map(|pair| pair.word).chain(hard.iter().copied()).collect();
        let candidates: Vec<&str> = ids.iter().map(|&word| words[word].as_str()).collect();
        let queries = model.embed(Side::Typos, self.features.counts(&typos, self.device));
        let candidates = model.embed(Side::Words, self.features.counts(&candidates, self.device));
        let ids: Vec<i32> = ids.into_iter().map(|word| word as i32).collect();
        let ids = Tensor::<1, Int>::from_data(ids.as_slice(), self.device);
        match self.settings.objective {
            Objective::Softmax => {
                let hard = candidates.clone().slice(pairs.len()..ids.dims()[0]);
                let batch = Pairs::new(queries, candidates.slice(0..pairs.len())).with_hard_negatives(hard);
                model.loss.forward_pairs(batch.with_candidate_ids(ids))
            }
            Objective::Pairs => pairs_alone(model, queries, candidates),
        }
    }

    /// For each word trained on, by its index among all, the words that a misspelling of it is most likely taken for: the nearest ones.
    fn confused_words(&self, model: &Towers) -> Result<Vec<Vec<usize>>> {
        let (model, device) = (model.valid(), self.device.clone().inner());
        let known = &self.spellings.training_words;
        let words: Vec<&str> = known.iter().map(|&word| self.spellings.words[word].as_str()).collect();
        let itself: Vec<Vec<usize>> = (0..words.len()).map(|word| vec![word]).collect();
        let catalogue = model.catalogue(self.features, &words, &device)?;
        let queries = model.embed_all(Side::Typos, self.features, &words, &device);
        let hits = catalogue.search(CONFUSED).with_exclusions(&itself).try_run(queries)?;
        let hits: Vec<i64> = hits.indices.into_data().iter::<i64>().collect();
        let mut confused = vec![Vec::new(); self.spellings.words.len()];
        for (&word, hits) in known.iter().zip(hits.chunks(CONFUSED)) {
            confused[word] = hits.iter().map(|&hit| known[hit as usize]).collect();
        }
        Ok(confused)
    }

    /// Recall of the held-out misspellings, among all words.
    pub fn evaluate(&self, model: &Towers, loss: f64) -> Result<Epoch> {
        let (model, device) = (model.valid(), self.device.clone().inner());
        let Spellings { words, held_out, .. } = self.spellings;
        let typos: Vec<&str> = held_out.iter().map(|pair| pair.typo.as_str()).collect();
        let meant = held_out.iter().map(|pair| pair.word).collect();
        let [recall_1, recall_10] = recall(&model, self.features, words, &typos, meant, &device)?;
        let scale = model.loss.logit_scale.as_ref().map_or(0.0, |scale| scale.val().into_scalar::<f64>());
        Ok(Epoch { loss, temperature: (-scale).exp(), recall_1, recall_10 })
    }
}

/// Recall@1 and @10 of misspellings, by the indices of the words that they mean.
pub fn recall(
    model: &Towers,
    features: &Features,
    words: &[String],
    typos: &[&str],
    meant: Vec<usize>,
    device: &Device,
) -> Result<[f64; 2]> {
    let catalogue = model.catalogue(features, words, device)?;
    let hits = catalogue.search(10).try_run(model.embed_all(Side::Typos, features, typos, device))?;
    let meant = metrics::Relevance::one(meant);
    Ok([1, 10].map(|k| metrics::recall(&hits, &meant, k)))
}

/// The right pairs of a batch, and as many wrong ones, each by itself: what retrieval was trained by before.
fn pairs_alone(model: &Towers, queries: Tensor<2>, candidates: Tensor<2>) -> Tensor<1> {
    let [count, _] = queries.dims();
    let cosine = burn_dot::DotConfig::new(1).with_normalize(true).init();
    let scale = model.loss.logit_scale.as_ref().expect("a learned temperature").val().exp().unsqueeze::<2>();
    let right: Tensor<2> = cosine.forward(queries.clone(), candidates.clone().slice(0..count));
    let wrong = Tensor::cat(vec![candidates.clone().slice(1..count), candidates.slice(0..1)], 0);
    let wrong: Tensor<2> = cosine.forward(queries, wrong);
    // A cosine of one half is undecided.
    let logit = |cosine: Tensor<2>| (cosine - 0.5) * scale.clone();
    let softplus = |x: Tensor<2>| burn::tensor::activation::softplus(x, 1.0);
    (softplus(-logit(right)) + softplus(logit(wrong))).mean()
}

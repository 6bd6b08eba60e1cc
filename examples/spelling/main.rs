//! Finds the word that a misspelling means: two Dense towers, a cosine `Dot` over all pairs of a batch, a softmax.
//!
//! ```text
//! misspelling → n-grams → Dense(dim) ┐
//!                                    ├→ cosine Dot, every row with every row → softmax → which word of the batch
//! word        → n-grams → Dense(dim) ┘
//! ```
//!
//! 80,738 real misspellings of 17,907 words. A tenth of the words is held out with all their misspellings: the model must find words that
//! it was never trained on, among all. It is compared with TF-IDF and edit distance, and saved; `correct` then answers from it.
//!
//! ```sh
//! cargo run --example spelling
//! cargo run --example spelling -- correct recieve definately
//! cargo run --example spelling -- evaluate more_pairs.csv
//! cargo run --example spelling -- --data pairs.csv --out out/pairs --seed 1
//! cargo run --example spelling -- --resume
//! ```

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use burn::prelude::*;
use clap::{Parser, Subcommand};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

mod baselines;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod features;
mod model;
mod pictures;
mod saved;
mod train;

use common::{
    Place,
    checkpoint::{Begin, Folder},
    open, report, save_whole,
};
use data::{Pair, Spellings};
use features::Features;
use model::{Side, Towers};
use train::{Objective, Settings, State, Trainer};

/// Find the word that a misspelling means: two Dense towers, a cosine Dot, an in-batch softmax.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Answer from a trained model, with ten neighbours of each word
    Correct {
        /// Words to correct
        #[arg(required = true)]
        words: Vec<String>,
        /// Where to compute: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
        #[arg(long, default_value = "flex")]
        device: Place,
        /// Folder of the model
        #[arg(long, default_value = "out/spelling")]
        out: PathBuf,
    },
    /// Ask a trained model for the words of other misspellings, and count those it finds
    Evaluate {
        /// CSV file of misspelling and correct word, with a header; .gz is unpacked. Words that the model does not know are added to its own
        data: PathBuf,
        /// Where to compute: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
        #[arg(long, default_value = "flex")]
        device: Place,
        /// Folder of the model
        #[arg(long, default_value = "out/spelling")]
        out: PathBuf,
    },
}

#[derive(clap::Args)]
struct TrainArgs {
    /// Where to compute: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
    #[arg(long, default_value = "flex")]
    device: Place,
    /// Passes over the training pairs [default: 2, and more where there are few pairs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Length of a word's vector
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=1024))]
    dim: u32,
    /// Chooses the held-out words, the first weights and the order of training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What is trained: the in-batch softmax, or pairs alone, to compare with
    #[arg(long, value_enum, default_value_t = Objective::Softmax)]
    objective: Objective,
    /// Folder for the model, its checkpoints and the pictures
    #[arg(long, default_value = "out/spelling")]
    out: PathBuf,
    /// CSV file of misspelling and correct word, with a header; .gz is unpacked
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/typos.csv.gz"), hide_default_value = true)]
    data: PathBuf,
    #[command(flatten)]
    begin: Begin,
}

fn main() -> ExitCode {
    let args = Args::parse();
    report(|| match &args.command {
        Some(Command::Correct { words, device, out }) => correct(words, *device, out),
        Some(Command::Evaluate { data, device, out }) => evaluate(data, *device, out),
        None => train(&args.train),
    })
}

/// Misspellings that baselines are asked: edit distance takes a millisecond for each thousand words.
const SAMPLE: usize = 1000;

fn train(args: &TrainArgs) -> Result<()> {
    let spellings = Spellings::read(&args.data, args.seed)?;
    let device = open(args.device)?.autodiff();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    println!(
        "{} misspellings of {} words; {} of {} words held out with seed {}",
        spellings.training.len() + spellings.held_out.len(),
        spellings.words.len(),
        spellings.held_out.len(),
        spellings.words.len() - spellings.training_words.len(),
        args.seed
    );
    let known = spellings.training_words.iter().map(|&word| spellings.words[word].as_str());
    let features = Features::of(known.chain(spellings.training.iter().map(|pair| pair.typo.as_str())));
    let settings = Settings {
        seed: args.seed,
        dim: args.dim as usize,
        epochs: args.epochs.map_or_else(|| train::enough_epochs(spellings.training.len()), |epochs| epochs as usize),
        objective: args.objective,
        features: features.len(),
        training: spellings.training.len(),
    };
    let checkpoints = Folder(args.out.clone());
    let trainer =
        Trainer { settings: &settings, spellings: &spellings, features: &features, device: &device, checkpoints: &checkpoints };
    let state = train::untrained(&settings, &features, &device).begin(&args.begin, &checkpoints, &settings)?;
    if state.curve.is_empty() {
        let untrained = trainer.evaluate(&state.model, f64::NAN)?;
        println!("untrained      recall@1 {:.4}, @10 {:.4}", untrained.recall_1, untrained.recall_10);
    }
    let begun = state.curve.len();
    let start = Instant::now();
    let state = trainer.run(state)?;
    let last = *state.curve.last().context("no epoch was trained")?;
    println!(
        "trained        recall@1 {:.4}, @10 {:.4} after {:.1} s for {} epochs; temperature {:.3}",
        last.recall_1,
        last.recall_10,
        start.elapsed().as_secs_f64(),
        settings.epochs - begun,
        last.temperature
    );
    let baselines = compare(&spellings, args.seed);
    finish(args, &spellings, &features, &state, &baselines)?;
    checkpoints.clear()
}

/// What others find, of a sample of what is held out.
fn compare(spellings: &Spellings, seed: u64) -> Vec<(&'static str, baselines::Recall)> {
    let mut sample: Vec<Pair> = spellings.held_out.clone();
    sample.shuffle(&mut StdRng::seed_from_u64(seed));
    sample.truncate(SAMPLE);
    let baselines = vec![
        ("TF-IDF", baselines::tf_idf(spellings, &sample)),
        ("edit distance", baselines::edit_distance(spellings, &sample)),
    ];
    for (name, [at_1, at_10]) in &baselines {
        println!("{name:14} recall@1 {at_1:.4}, @10 {at_10:.4} of {} of them", sample.len());
    }
    baselines
}

/// Saves the model, loads it back, and draws the pictures.
fn finish(
    args: &TrainArgs,
    spellings: &Spellings,
    features: &Features,
    state: &State,
    baselines: &[(&str, baselines::Recall)],
) -> Result<()> {
    let model = state.model.valid();
    let device = model.typos.device();
    saved::save(&args.out, &model, features, &spellings.words)?;
    let (loaded, _) = saved::load(&args.out, &device)?;
    let some: Vec<&str> = spellings.held_out.iter().take(SAMPLE).map(|pair| pair.typo.as_str()).collect();
    let vectors = |model: &Towers| model.embed_all(Side::Typos, features, &some, &device).into_data();
    ensure!(vectors(&model) == vectors(&loaded), "{} answers otherwise than the model it was saved from", args.out.display());
    println!("{}: saved, loaded back, the same vectors", args.out.display());

    let picture = args.out.join("recall.svg");
    save_whole(&picture, |part| pictures::draw_curve(part, &state.curve, baselines))?;
    println!("{}: recall over training", picture.display());
    let picture = args.out.join("neighbours.svg");
    save_whole(&picture, |part| pictures::draw_map(part, &places(&model, features, spellings, &device)))?;
    println!("{}: held-out words among their misspellings", picture.display());
    Ok(())
}

/// The held-out words with the most misspellings, and those, by the two directions in which their vectors differ most.
fn places(model: &Towers, features: &Features, spellings: &Spellings, device: &Device) -> Vec<pictures::Place> {
    const WORDS: usize = 6;
    let mut words: Vec<(usize, Vec<&str>)> = Vec::new();
    for pair in &spellings.held_out {
        match words.iter_mut().find(|(word, _)| *word == pair.word) {
            Some((_, typos)) => typos.push(&pair.typo),
            None => words.push((pair.word, vec![&pair.typo])),
        }
    }
    words.sort_by_key(|(word, typos)| (std::cmp::Reverse(typos.len()), *word));
    words.truncate(WORDS);
    let correct: Vec<&str> = words.iter().map(|(word, _)| spellings.words[*word].as_str()).collect();
    let typos: Vec<(usize, &str)> =
        words.iter().enumerate().flat_map(|(group, (_, typos))| typos.iter().map(move |typo| (group, *typo))).collect();
    let of_typos: Vec<&str> = typos.iter().map(|&(_, typo)| typo).collect();
    let vectors = Tensor::cat(
        vec![
            model.embed_all(Side::Words, features, &correct, device),
            model.embed_all(Side::Typos, features, &of_typos, device),
        ],
        0,
    );
    let unit = vectors.clone() / vectors.square().sum_dim(1).sqrt();
    let centred = unit.clone() - unit.mean_dim(0);
    let (u, s, _) = burn::linalg::svd::<2, 1>(centred, 30);
    let at = (u * s.unsqueeze::<2>()).narrow(1, 0, 2).into_data().iter::<f32>().collect::<Vec<_>>();
    let texts = correct.iter().enumerate().map(|(group, word)| (group, *word)).chain(typos);
    texts
        .zip(at.chunks_exact(2))
        .enumerate()
        .map(|(i, ((group, text), at))| pictures::Place {
            text: text.to_owned(),
            at: [at[0], at[1]],
            group,
            correct: i < correct.len(),
        })
        .collect()
}

fn correct(words: &[String], place: Place, out: &Path) -> Result<()> {
    let device = open(place)?;
    let (model, saved) = saved::load(out, &device)?;
    let catalogue = model.catalogue(&saved.features, &saved.words, &device)?;
    let asked: Vec<String> = words.iter().map(|word| word.trim().to_lowercase()).collect();
    ensure!(asked.iter().all(|word| !word.is_empty()), "a word to correct is empty");
    let start = Instant::now();
    let hits = catalogue.search(10).try_run(model.embed_all(Side::Typos, &saved.features, &asked, &device))?;
    let (scores, indices) = (hits.scores.into_data(), hits.indices.into_data());
    let took = start.elapsed();
    let hits: Vec<(f32, i64)> = scores.iter::<f32>().zip(indices.iter::<i64>()).collect();
    for (word, hits) in words.iter().zip(hits.chunks(10.min(saved.words.len()))) {
        println!("{word}");
        hits.iter().for_each(|&(score, index)| println!("  {score:.3}  {}", saved.words[index as usize]));
    }
    println!("{} of {} words in {:.1} ms", words.len(), saved.words.len(), took.as_secs_f64() * 1e3);
    Ok(())
}

fn evaluate(data: &Path, place: Place, out: &Path) -> Result<()> {
    let pairs = data::read_pairs(data)?;
    let device = open(place)?;
    let (model, mut saved) = saved::load(out, &device)?;
    let known = saved.words.len();
    let mut index: HashMap<String, usize> = saved.words.iter().cloned().zip(0..).collect();
    let meant: Vec<usize> = pairs
        .iter()
        .map(|(_, word)| {
            *index.entry(word.clone()).or_insert_with(|| {
                saved.words.push(word.clone());
                saved.words.len() - 1
            })
        })
        .collect();
    let typos: Vec<&str> = pairs.iter().map(|(typo, _)| typo.as_str()).collect();
    let [recall_1, recall_10] = train::recall(&model, &saved.features, &saved.words, &typos, meant, &device)?;
    println!(
        "{} misspellings, {known} words of the model and {} others: recall@1 {recall_1:.4}, @10 {recall_10:.4}",
        pairs.len(),
        saved.words.len() - known
    );
    Ok(())
}

//! Checkpoints: folders that are there whole, or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    common::save_whole,
    features::Features,
    train::{Epoch, Settings, State},
};

/// Where the checkpoints of a run are: `checkpoint-1`, `checkpoint-2`, …, of which the last is kept.
pub struct Folder(pub PathBuf);

#[derive(Serialize, Deserialize)]
struct Progress {
    settings: Settings,
    curve: Vec<Epoch>,
}

impl Folder {
    /// Writes a checkpoint under another name, renames it, and only then removes those before.
    pub fn save(&self, state: &State, settings: &Settings) -> Result<()> {
        let epoch = state.curve.len();
        let before = self.epochs();
        save_whole(&self.of(epoch), |part| {
            // What a killed run left.
            let _ = fs::remove_dir_all(part);
            fs::create_dir(part)?;
            state.model.clone().save_file(part.join("model.bpk"))?;
            state.optimizer.save(part.join("optimizer.bpk"))?;
            let progress = Progress { settings: settings.clone(), curve: state.curve.clone() };
            fs::write(part.join("progress.json"), serde_json::to_string_pretty(&progress)?)?;
            Ok(())
        })?;
        self.remove(before.into_iter().filter(|&before| before != epoch))
    }

    /// The last checkpoint, which must be of the same settings.
    pub fn load(&self, settings: &Settings, features: &Features, device: &Device) -> Result<State> {
        let last = self.epochs().into_iter().max();
        let last = last.with_context(|| format!("there is no checkpoint in {} to resume from", self.0.display()))?;
        let folder = self.of(last);
        let load = || -> Result<State> {
            let progress: Progress = serde_json::from_str(&fs::read_to_string(folder.join("progress.json"))?)?;
            ensure!(
                progress.settings == *settings,
                "it was made with other settings: {:?}, not {settings:?}",
                progress.settings
            );
            let state = State::new(settings, features, device);
            Ok(State {
                model: state.model.try_load_file(folder.join("model.bpk"))?,
                optimizer: state.optimizer.load(folder.join("optimizer.bpk"))?,
                curve: progress.curve,
            })
        };
        load().with_context(|| format!("cannot resume from {}", folder.display()))
    }

    /// Removes the checkpoints of a run: it is complete, or another begins.
    pub fn clear(&self) -> Result<()> {
        self.remove(self.epochs().into_iter())
    }

    fn remove(&self, epochs: impl Iterator<Item = usize>) -> Result<()> {
        for epoch in epochs {
            // Renamed first, so that a run that is killed here leaves no part of one.
            let (folder, part) = (self.of(epoch), self.0.join("checkpoint.removed"));
            let _ = fs::remove_dir_all(&part);
            let remove = || fs::rename(&folder, &part).and_then(|()| fs::remove_dir_all(&part));
            remove().with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }

    fn of(&self, epoch: usize) -> PathBuf {
        self.0.join(format!("checkpoint-{epoch}"))
    }

    fn epochs(&self) -> Vec<usize> {
        let number = |name: &Path| name.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| number(&entry.path())).collect()
    }
}

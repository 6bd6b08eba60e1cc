//! Where results go: a raw file, a picture, and a text, which for recorded results is a marked region of `benches/README.md`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{
    common::{Place, save_whole},
    pictures,
    results::Run,
    shared::write_region,
    table,
};

#[derive(Clone, Copy)]
pub enum Report {
    Table,
    OneThread,
    Growth,
    Wgpu,
    Cuda,
}

impl Report {
    pub const ALL: [Report; 5] = [Report::Table, Report::OneThread, Report::Growth, Report::Wgpu, Report::Cuda];

    pub fn of_device(place: Place) -> Result<Self> {
        match place.to_string().split(':').next() {
            Some("wgpu") => Ok(Report::Wgpu),
            Some("cuda") => Ok(Report::Cuda),
            _ => bail!("--device is for wgpu and cuda; the CPU's table is the one without it, not {place}"),
        }
    }

    /// The name of its files, and that of its region in the README.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Report::Table => ("results", "table"),
            Report::OneThread => ("one-thread", "one-thread"),
            Report::Growth => ("growth", "growth"),
            Report::Wgpu => ("wgpu", "wgpu"),
            Report::Cuda => ("cuda", "cuda"),
        }
    }
}

/// A folder, and whether its texts belong into the README.
pub struct Destination {
    folder: PathBuf,
    in_readme: bool,
}

impl Destination {
    /// What is committed.
    pub fn recorded() -> Self {
        Destination { folder: concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results").into(), in_readme: true }
    }

    pub fn folder(folder: PathBuf) -> Self {
        Destination { folder, in_readme: false }
    }

    pub fn has(&self, report: Report) -> bool {
        self.file(report, "json").is_file()
    }

    fn file(&self, report: Report, extension: &str) -> PathBuf {
        self.folder.join(report.names().0).with_extension(extension)
    }

    /// The results alone.
    pub fn write(&self, report: Report, run: &Run) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make the folder {}", self.folder.display()))?;
        save_whole(&self.file(report, "json"), |file| Ok(fs::write(file, run.json()?)?))
    }

    /// Text and picture, from the file of results; returns where the text is.
    pub fn draw(&self, report: Report) -> Result<PathBuf> {
        let run = Run::read(&self.file(report, "json"))?;
        let picture = self.file(report, "svg");
        let text = match report {
            Report::Growth => {
                save_whole(&picture, |file| pictures::growth(file, &run))?;
                table::growth(&run)
            }
            _ => {
                save_whole(&picture, |file| pictures::ratios_by_cell(file, &run))?;
                table::table(&run)
            }
        };
        let name = report.names().0;
        if self.in_readme {
            if let Report::Table = report {
                write_region("README.md", "speed", &table::in_short(&run))?;
            }
            let text = format!("{text}\n![The same as a picture](results/{name}.svg)\n");
            write_region("benches/README.md", report.names().1, &text)
        } else {
            let file = self.file(report, "md");
            save_whole(&file, |file| Ok(fs::write(file, format!("{text}\n![The same as a picture]({name}.svg)\n"))?))?;
            Ok(file)
        }
    }
}

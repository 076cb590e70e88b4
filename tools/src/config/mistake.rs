//! What is wrong with a configuration, and where: `FILE:LINE:COLUMN: what; suggestion`.

use std::fmt;
use std::path::{Path, PathBuf};

/// Everything that is wrong with one file, in its order.
#[derive(Debug)]
pub struct Mistakes {
    path: PathBuf,
    text: String,
    found: Vec<Mistake>,
}

#[derive(Debug)]
struct Mistake {
    /// Bytes from the beginning; none if it has no place.
    at: Option<usize>,
    what: String,
    suggestion: Option<String>,
}

impl Mistakes {
    /// None yet.
    pub fn new(path: &Path, text: &str) -> Mistakes {
        Mistakes {
            path: path.into(),
            text: text.into(),
            found: Vec::new(),
        }
    }

    /// One that concerns the file as a whole.
    pub fn of_file(path: &Path, what: String) -> Mistakes {
        let mut mistakes = Mistakes::new(path, "");
        mistakes.add(None, what, None);
        mistakes
    }

    /// Another one.
    pub fn add(&mut self, at: Option<usize>, what: impl Into<String>, suggestion: Option<String>) {
        self.found.push(Mistake {
            at,
            what: what.into(),
            suggestion,
        });
    }

    /// How many there are, in words.
    pub fn counted(&self) -> String {
        match self.found.len() {
            1 => "1 mistake in the configuration".into(),
            count => format!("{count} mistakes in the configuration"),
        }
    }

    /// What was read, if nothing is wrong with it.
    pub fn none_or<T>(mut self, read: T) -> Result<T, Mistakes> {
        self.found.sort_by_key(|mistake| mistake.at);
        match self.found.is_empty() {
            true => Ok(read),
            false => Err(self),
        }
    }

    /// Line and column, in characters, from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.found.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.path.display())?;
            if let Some((line, column)) = mistake.at.map(|at| self.place(at)) {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " {}", mistake.what)?;
            if let Some(suggestion) = &mistake.suggestion {
                write!(f, "; {suggestion}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

//! Traces of calls: read from CSV text, cut by time, or generated from a seed.
//! It must never reorder calls silently: text that goes back in time is an error.

use std::collections::HashMap;
use std::fmt;

use crate::keepalive::{FunctionIx, TenantIx};

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Arrival, milliseconds since the start of the trace.
    pub at_ms: u64,
    /// The function called.
    pub function: FunctionIx,
    /// Time on the GPU once a worker has the call, milliseconds.
    pub exec_ms: u64,
    /// Who calls.
    pub tenant: TenantIx,
}

/// Calls in order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The calls; `at_ms` never decreases.
    pub calls: Vec<Call>,
    /// How many different functions there are; indices are dense in order of first call.
    pub functions: usize,
}

/// Why a text is not a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    /// Line of the text, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for TraceError {}

/// Dense indices for names in order of appearance.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn index(&mut self, name: &str) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

impl Trace {
    /// Reads CSV with a header that has `t_s`, `model`, `exec_s` and `tenant`, in any order, among
    /// others.
    ///
    /// # Errors
    /// A missing column, a number that is none or negative, or an arrival before its predecessor,
    /// with its line.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let fail = |line: usize, what: String| TraceError {
            line: line + 1,
            what,
        };
        let mut lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        let (_, header) = lines.next().ok_or_else(|| fail(0, "empty".to_owned()))?;
        let header: Vec<&str> = header.split(',').map(str::trim).collect();
        let column = |name: &str| {
            let found = header.iter().position(|column| *column == name);
            found.ok_or_else(|| fail(0, format!("no column {name}")))
        };
        let (at, model, exec, tenant) = (
            column("t_s")?,
            column("model")?,
            column("exec_s")?,
            column("tenant")?,
        );
        let (mut models, mut tenants) = (Names::default(), Names::default());
        let mut calls: Vec<Call> = Vec::new();
        for (number, line) in lines {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let field = |ix: usize| {
                let found = fields.get(ix).copied();
                found.ok_or_else(|| fail(number, format!("no field {}", header[ix])))
            };
            let ms = |ix: usize| {
                let text = field(ix)?;
                match text.parse::<f64>() {
                    Ok(s) if s.is_finite() && s >= 0.0 => Ok((s * 1000.0).round() as u64),
                    _ => Err(fail(
                        number,
                        format!("{} is not seconds: {text:?}", header[ix]),
                    )),
                }
            };
            let call = Call {
                at_ms: ms(at)?,
                function: FunctionIx(models.index(field(model)?)),
                exec_ms: ms(exec)?,
                tenant: TenantIx(tenants.index(field(tenant)?)),
            };
            if calls.last().is_some_and(|last| last.at_ms > call.at_ms) {
                return Err(fail(number, "arrives before the line above".to_owned()));
            }
            calls.push(call);
        }
        Ok(Self {
            calls,
            functions: models.0.len(),
        })
    }

    /// The first `calls` calls.
    #[must_use]
    pub fn prefix(&self, calls: usize) -> Self {
        Self {
            calls: self.calls[..calls.min(self.calls.len())].to_vec(),
            functions: self.functions,
        }
    }

    /// The calls that arrive on days `from..to`, counted from 0; times and functions stay as they
    /// are.
    #[must_use]
    pub fn days(&self, from: u64, to: u64) -> Self {
        let day = |call: &Call| call.at_ms / 86_400_000;
        let calls = self
            .calls
            .iter()
            .filter(|call| (from..to).contains(&day(call)));
        Self {
            calls: calls.copied().collect(),
            functions: self.functions,
        }
    }
}

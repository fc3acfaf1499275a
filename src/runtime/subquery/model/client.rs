//! A client that believes what it is sent, and objects to what cannot be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::clauses::Row;
use crate::domain::Offset;
use crate::shape_log::{Read, ShapeView, messages};

/// What a client keeps of a shape.
#[derive(Debug)]
pub struct Client {
    pub offset: Offset,
    pub rows: BTreeMap<String, Kept>,
    /// Every message, for the story of a failure.
    pub seen: Vec<String>,
}

/// A row, its tags in slots, and its conditions.
#[derive(Clone, Debug)]
pub struct Kept {
    pub row: Row,
    tags: Vec<Vec<String>>,
    active: Vec<bool>,
}

impl Kept {
    fn holds(&self) -> bool {
        let holds = |tag: &Vec<String>| {
            tag.iter().enumerate().all(|(position, slot)| slot.is_empty() || self.active[position])
        };
        self.tags.iter().any(holds)
    }
}

impl Client {
    pub fn new() -> Client {
        Client { offset: Offset::BeforeAll, rows: BTreeMap::new(), seen: Vec::new() }
    }

    /// Reads to the end of a view; whether that is a state of the database.
    ///
    /// # Errors
    /// What cannot be.
    pub fn read(&mut self, view: &ShapeView) -> Result<bool, String> {
        loop {
            let range = match view.read(self.offset).map_err(|error| error.to_string())? {
                Read::Range(range) => range,
                other => return Err(format!("nothing after {}: {other:?}", self.offset)),
            };
            if range.end < self.offset {
                return Err(format!("the offset goes back from {} to {}", self.offset, range.end));
            }
            let up_to_date = range.up_to_date;
            let moved = range.end != self.offset;
            self.offset = range.end;
            for piece in range.body {
                for message in messages(&piece.map_err(|error| error.to_string())?) {
                    let text = String::from_utf8_lossy(message).into_owned();
                    self.seen.push(format!("{} {text}", self.offset));
                    let message: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                    self.take(&message).map_err(|what| format!("{what}: {text}"))?;
                }
            }
            if up_to_date || !moved {
                return Ok(up_to_date);
            }
        }
    }

    fn take(&mut self, message: &Value) -> Result<(), &'static str> {
        let headers = &message["headers"];
        if let Some(event) = headers["event"].as_str() {
            let patterns = headers["patterns"].as_array().ok_or("no patterns")?;
            for kept in self.rows.values_mut() {
                for pattern in patterns {
                    let position = pattern["pos"].as_u64().ok_or("no position")? as usize;
                    let matches =
                        |tag: &Vec<String>| Some(tag[position].as_str()) == pattern["value"].as_str();
                    if kept.tags.iter().any(matches) {
                        kept.active[position] = event == "move-in";
                    }
                }
            }
            self.rows.retain(|_, kept| kept.holds());
            return Ok(());
        }
        let Some(operation) = headers["operation"].as_str() else { return Ok(()) };
        let key = message["key"].as_str().ok_or("no key")?.to_owned();
        if operation == "delete" {
            return self.rows.remove(&key).map(drop).ok_or("a delete of a row that is not there");
        }
        let before = self.rows.get(&key);
        match (operation, before.is_some()) {
            ("insert", true) => return Err("an insert of a row that is there"),
            ("update", false) => return Err("an update of a row that is not there"),
            _ => {}
        }
        let mut row = before.map_or([None; 3], |kept| kept.row);
        for (cell, name) in row.iter_mut().zip(super::clauses::COLUMNS) {
            match &message["value"][name] {
                Value::String(text) => *cell = text.parse().ok(),
                Value::Null if message["value"].get(name).is_some() => *cell = None,
                _ => {}
            }
        }
        let texts = headers["tags"].as_array().ok_or("no tags")?.iter().filter_map(Value::as_str);
        let tags = texts.map(|tag| tag.split('/').map(str::to_owned).collect()).collect();
        let active = headers["active_conditions"].as_array().ok_or("no conditions")?;
        let active = active.iter().map(|active| active == &Value::Bool(true)).collect();
        let kept = Kept { row, tags, active };
        if !kept.holds() {
            return Err("a row none of whose disjuncts holds");
        }
        self.rows.insert(key, kept);
        Ok(())
    }

    pub fn sorted(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.values().map(|kept| kept.row).collect();
        rows.sort_unstable();
        rows
    }
}

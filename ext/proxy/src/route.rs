//! From a path or a model name to a function.
//! Must never match a name in part: a function is found by its whole key or not at all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::definition::Definition;
use crate::dispatch::{Function, Hub};
use crate::reply::Reject;

/// All functions and the model names that lead to them.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    functions: HashMap<Arc<str>, Arc<Function>>,
    /// Keys that claim a model name, in the order in which they came: the first one has it.
    models: HashMap<String, Vec<Arc<str>>>,
}

impl Routes {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, key: &str) -> Option<Arc<Function>> {
        self.read().functions.get(key).cloned()
    }

    /// Finds a model by alias, by `namespace/function` or by `tenant/namespace/function`.
    pub(crate) fn find_model(&self, model: &str, default_tenant: &str) -> Option<Arc<Function>> {
        let tables = self.read();
        if let Some(key) = tables.models.get(model).and_then(|keys| keys.first()) {
            return tables.functions.get(key).cloned();
        }
        match model.bytes().filter(|&byte| byte == b'/').count() {
            1 => tables
                .functions
                .get(format!("{default_tenant}/{model}").as_str())
                .cloned(),
            2 => tables.functions.get(model).cloned(),
            _ => None,
        }
    }

    pub(crate) fn upsert(&self, key: &str, definition: Definition, hub: &Arc<Hub>) {
        let mut tables = self.write();
        let known = tables.functions.get(key).cloned();
        let old = known.as_ref().map(|function| function.definition());
        let key = known
            .as_ref()
            .map_or_else(|| Arc::from(key), |function| function.key.clone());
        let kept = |name: &String| definition.model_names.contains(name);
        for name in old
            .iter()
            .flat_map(|old| &old.model_names)
            .filter(|name| !kept(name))
        {
            tables.unclaim(name, &key);
        }
        for name in &definition.model_names {
            let claims = tables.models.entry(name.clone()).or_default();
            if !claims.contains(&key) {
                claims.push(key.clone());
            }
        }
        match known {
            Some(function) => {
                drop(tables);
                function.update(definition);
            }
            None => {
                let function = Function::new(key.clone(), definition, hub.clone());
                tables.functions.insert(key, Arc::new(function));
            }
        }
    }

    pub(crate) fn remove(&self, key: &str) -> bool {
        let mut tables = self.write();
        let Some(function) = tables.functions.remove(key) else {
            return false;
        };
        for name in &function.definition().model_names {
            tables.unclaim(name, &function.key);
        }
        drop(tables);
        function.remove();
        true
    }

    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.read().functions.values().cloned().collect()
    }
}

impl Tables {
    fn unclaim(&mut self, name: &str, key: &Arc<str>) {
        if let Some(claims) = self.models.get_mut(name) {
            claims.retain(|claim| claim != key);
            if claims.is_empty() {
                self.models.remove(name);
            }
        }
    }
}

/// Splits `/funccall/{tenant}/{namespace}/{function}{rest}` into the function's key and the rest,
/// which starts with a slash or is empty. None when a part is missing.
pub(crate) fn split_call(path: &str) -> Option<Result<(Cow<'_, str>, &str), Reject>> {
    let names = path.strip_prefix("/funccall/")?;
    let mut slashes = memchr::memchr_iter(b'/', names.as_bytes());
    let (first, second) = (slashes.next()?, slashes.next()?);
    let end = slashes.next().unwrap_or(names.len());
    let parts = [
        &names[..first],
        &names[first + 1..second],
        &names[second + 1..end],
    ];
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    let rest = &names[end..];
    if !names[..end].contains('%') {
        return Some(match parts.iter().find(|part| !is_name(part)) {
            Some(part) => Err(bad_name(part)),
            None => Ok((Cow::Borrowed(&names[..end]), rest)),
        });
    }
    let mut key = String::with_capacity(end);
    for part in parts {
        match percent_decode(part) {
            Some(name) if is_name(&name) => {
                if !key.is_empty() {
                    key.push('/');
                }
                key.push_str(&name);
            }
            _ => return Some(Err(bad_name(part))),
        }
    }
    Some(Ok((Cow::Owned(key), rest)))
}

fn bad_name(part: &str) -> Reject {
    Reject::bad_request(format!(
        "`{part}` is not a name: expected [A-Za-z0-9][A-Za-z0-9._-]*"
    ))
}

/// Whether this is a legal name of a tenant, namespace or function.
pub(crate) fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= 253
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn percent_decode(text: &str) -> Option<String> {
    let hex = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            bytes.push(hex(rest.next()?)? << 4 | hex(rest.next()?)?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(path: &str) -> Option<Result<(String, String), u16>> {
        split_call(path).map(|found| match found {
            Ok((key, rest)) => Ok((key.into_owned(), rest.to_owned())),
            Err(error) => Err(error.status),
        })
    }

    fn found(key: &str, rest: &str) -> Option<Result<(String, String), u16>> {
        Some(Ok((key.to_owned(), rest.to_owned())))
    }

    #[test]
    fn a_path_names_a_function_and_keeps_its_rest() {
        assert_eq!(split("/funccall/t/n/f"), found("t/n/f", ""));
        assert_eq!(split("/funccall/t/n/f/"), found("t/n/f", "/"));
        assert_eq!(
            split("/funccall/t/n/f/a%2Fb//c"),
            found("t/n/f", "/a%2Fb//c")
        );
        assert_eq!(split("/funccall/t/n/%66-1"), found("t/n/f-1", ""));
        for path in [
            "/funccall/",
            "/funccall/t",
            "/funccall/t/n",
            "/funccall/t/n/",
            "/funccall//n/f",
        ] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for name in [
            "a%2Fb", "a%0Ab", "a%00", "%", "%4", "%zz", "..", ".a", "%ff", "a%20b", "~a",
        ] {
            assert_eq!(
                split(&format!("/funccall/t/n/{name}/x")),
                Some(Err(400)),
                "{name}"
            );
        }
    }
}

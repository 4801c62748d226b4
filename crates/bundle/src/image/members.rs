//! Reads JSON objects as Go's `encoding/json` reads them into a struct, because containerd is
//! written in Go.
//!
//! A key matches a member in any case. If a member is given twice, the last value counts. Two
//! objects with the same key are refused. Go would merge them into a third object that is not in
//! the document.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

/// The members of an object, for a struct that has some of them.
pub(crate) struct Members<A>(pub(crate) A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Members<A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let Self(mut members) = self;
        let mut given: Vec<(&'static str, &'de RawValue)> = Vec::with_capacity(fields.len());
        while let Some(key) = members.next_key::<String>()? {
            let Some(field) = field_of(&key, fields) else {
                members.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: &'de RawValue = members.next_value()?;
            match given.iter_mut().find(|(known, _)| *known == field) {
                None => given.push((field, value)),
                Some((_, before)) => *before = last(field, before, value)?,
            }
        }
        visitor.visit_map(Given {
            left: given.into_iter(),
            value: None,
            error: std::marker::PhantomData,
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_map(self.0)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Returns the member for a key: the member with the same spelling, or else the member that differs
/// only in case.
fn field_of(key: &str, fields: &'static [&'static str]) -> Option<&'static str> {
    let spelled = fields.iter().find(|field| **field == key);
    spelled
        .or_else(|| fields.iter().find(|field| folded(field).eq(folded(key))))
        .copied()
}

/// Folds a text by Unicode's simple folding, as far as it leads to ASCII letters. Members have no
/// other letters.
fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

/// Returns the value that counts if a member has two.
fn last<'de, E: Error>(field: &str, before: &'de RawValue, value: &'de RawValue) -> Result<&'de RawValue, E> {
    let kind = |value: &RawValue| value.get().as_bytes().first().copied();
    match (kind(before), kind(value)) {
        (Some(b'{'), Some(b'{')) => Err(E::custom(format_args!(
            "the object {field:?} is given twice, so its content is not clear"
        ))),
        // Go ignores a null, unless the member already has a value that can be nil.
        (Some(b'[' | b'{') | None, Some(b'n')) => Ok(value),
        (_, Some(b'n')) => Ok(before),
        _ => Ok(value),
    }
}

/// The value of each member, under the struct's names.
struct Given<'de, E> {
    left: std::vec::IntoIter<(&'static str, &'de RawValue)>,
    value: Option<(&'static str, &'de RawValue)>,
    error: std::marker::PhantomData<E>,
}

impl<'de, E: Error> MapAccess<'de> for Given<'de, E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, E> {
        self.value = self.left.next();
        let Some((field, _)) = self.value else {
            return Ok(None);
        };
        let field: StrDeserializer<'_, E> = field.into_deserializer();
        seed.deserialize(field).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, E> {
        let (field, value) = self.value.take().expect("a key comes before its value");
        seed.deserialize(&mut serde_json::Deserializer::from_str(value.get()))
            .map_err(|error| E::custom(format_args!("{field}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [&str; 4] = ["mediaType", "os.version", "size", "kind"];

    #[test]
    fn a_key_fits_a_member_whatever_its_case() {
        let rows = [
            ("mediaType", Some("mediaType")),
            ("MediaType", Some("mediaType")),
            ("MEDIATYPE", Some("mediaType")),
            ("media_type", None),
            ("OS.Version", Some("os.version")),
            ("os-version", None),
            ("\u{17f}ize", Some("size")),
            ("\u{212a}ind", Some("kind")),
            ("siz\u{e9}", None),
            ("", None),
        ];
        for (key, field) in rows {
            assert_eq!(field_of(key, &FIELDS), field, "{key:?}");
        }
    }
}

"""Twelve tasks of an agent, solved with the tools alone, by what their descriptions and answers say."""

import pytest
from callers import ERAS, calling

LIBRARY = [
    {"text": "Bread is baked from flour, water, salt and yeast. Let the dough rise for an hour.", "title": "Bread"},
    {
        "text": "A sourdough needs no yeast: its starter is fed with flour and water.",
        "title": "Sourdough",
    },
    {"text": "Steel is made from iron and carbon in a furnace.", "title": "Steel", "category": "metal"},
    {"text": "Copper conducts electricity well and turns green in the rain.", "title": "Copper", "category": "metal"},
    {"text": "Water boils at 90 degrees at sea level.", "title": "Boiling", "category": "physics"},
]
CHAPTERS = "\n\n".join(f"Chapter {n}. " + f"In the year {1900 + n} the river rose again. " * 40 for n in range(1, 31))


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ERAS)
async def test_twelve_tasks(memory, mode):
    async with calling(memory, mode=mode) as call:
        # 1. Find out what is there: an empty memory, and which columns it can be given.
        (index,) = (await call("list_indexes"))["indexes"]
        assert (index["name"], index["documents"]) == ("documents", 0)
        assert {"category", "added_by"} <= set(index["filters"])

        # 2. Look before adding; nothing found is an answer.
        nothing = await call("search_documents", query="how is bread made")
        assert (nothing["hits"], nothing["notes"]) == ([], ["Nothing was found: ask with other words"])

        # 3. Keep five facts in one call.
        added = await call("add_documents", documents=LIBRARY)
        keys = {document["title"]: item["key"] for document, item in zip(LIBRARY, added["items"], strict=True)}
        assert len(set(keys.values())) == 5

        # 4. Find one of them at once, and cite it.
        found = await call("search_documents", query="flour water salt yeast dough", limit=2)
        assert found["hits"][0]["title"] == "Bread"
        assert (await call.client.read_resource(found["hits"][0]["uri"])).contents[0].text.endswith("for an hour.")

        # 5. Narrow to a category.
        metals = await call("search_documents", query="made from what", filters={"category": "metal"})
        assert {hit["title"] for hit in metals["hits"]} == {"Steel", "Copper"}

        # 6. Compare: what is most like bread?
        similar = await call("find_similar", key=keys["Bread"], limit=1)
        assert similar["hits"][0]["title"] == "Sourdough"

        # 7. Adding the same again is no second document.
        again = await call("add_documents", documents=[LIBRARY[0]])
        assert again["items"][0] == {
            "position": 0,
            "status": "unchanged",
            "key": keys["Bread"],
            "uri": f"doc://documents/{keys['Bread']}",
        }

        # 8. Correct what is wrong; what is not said stays.
        corrected = {"id": keys["Boiling"], "text": "Water boils at 100 degrees at sea level."}
        assert (await call("add_documents", documents=[corrected]))["items"][0]["status"] == "updated"
        read = await call("get_document", key=keys["Boiling"])
        assert (read["title"], read["fields"]["category"]) == ("Boiling", "physics")
        assert "90" not in read["text"]

        # 9. Not overwrite what somebody else may have written.
        refused = await call.client.call_tool("add_documents", {"documents": [corrected], "on_conflict": "error"})
        assert refused.is_error
        assert "already: use on_conflict replace or skip, or another id" in refused.content[0].text

        # 10. Keep a long text, and page through it to a fact in the middle.
        await call("add_documents", documents=[{"id": "floods", "title": "Floods", "text": CHAPTERS}])
        offset, pages, chapter = 0, 0, None
        while offset is not None:
            part = await call("get_document", key="floods", offset=offset, max_chars=8_000)
            if "Chapter 17." in part["text"]:
                chapter = part["text"].partition("Chapter 17. ")[2][:40]
            offset, pages = part.get("next_offset"), pages + 1
        assert chapter.startswith("In the year 1917")
        assert 5 < pages < 15

        # 11. A mistake is explained, and the explanation leads to the answer.
        error = await call.error("search_documents", query="river", filters={"topic": "floods"})
        assert "it has id, title, text, category" in error
        river = await call("search_documents", query="river rose", filters={"title": "Floods"}, mode="keyword")
        assert [hit["key"] for hit in river["hits"]] == ["floods"]

        # 12. Delete what is no longer true, and nothing else.
        gone = await call("delete_documents", keys=["floods", keys["Steel"]])
        assert [item["status"] for item in gone["items"]] == ["deleted", "deleted"]
        left = await call("search_documents", query="steel river chapter", limit=50)
        assert {hit["title"] for hit in left["hits"]} == {"Bread", "Sourdough", "Copper", "Boiling"}

"""The MCP server: the indexes of one SQLite file, or of a Datasette, as tools for agents.

`tools` has those that read and `changing` those that write, over a `Library`: `file` is that of one SQLite file,
Datasette's plugin has its own. `server` puts them on the protocol, `http` on the network. Only public names of
`datasette_vec_gemini` are used here. Importing the package costs nothing; its modules import the `mcp` SDK, which takes
seconds.
"""

"""Conversations as token ids: chat templates, control tokens, and the channels of an answer."""

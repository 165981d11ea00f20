# %% [markdown]
# # convolutions

# %%
print(1)

# %% [markdown]
# # five_minutes

# %%
print(1)
